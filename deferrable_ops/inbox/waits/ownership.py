"""Finds the waits whose task has a newer attempt. Only the newest attempt of a task decides the task's result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, exists, or_, select

from deferrable_ops.inbox.database.schema import IS_WAITING, same_task, waits

# The aliases are created only once. An alias has one object per column, and these objects form reference cycles. If
# every transaction that registers waits created aliases, they would lie between the waits in memory, and their
# collection would leave gaps there.
_MINE: Final = waits.alias("mine")
_NEWER: Final = waits.alias("newer")


def superseded_waits(wait_ids: Sequence[str]) -> Select[Any]:
    """Return a query for the unsettled waits of older attempts.

    The query searches only the tasks to which the given waits belong.
    """
    return (
        select(waits.c.id)
        .join(_MINE, same_task(_MINE, waits))
        .where(_MINE.c.id.in_(wait_ids), IS_WAITING, has_newer_attempt())
    )


def has_newer_attempt() -> ColumnElement[bool]:
    """Return the SQL condition that is true for a wait if a newer attempt of its task is registered."""
    # Three values order two attempts, and each can be wrong: try_number restarts when a run is deleted and created
    # again; ti_id, a UUID of version 7, sorts by the clock of the machine that created it and can stay the same in a
    # retry; created_at is too late if the trigger was paused. An attempt is newer if two of the three agree.
    later_try = _NEWER.c.try_number > waits.c.try_number
    return exists().where(
        same_task(_NEWER, waits),
        or_(
            and_(later_try, _NEWER.c.ti_id >= waits.c.ti_id),
            and_(later_try, _NEWER.c.created_at >= waits.c.created_at),
            and_(_NEWER.c.ti_id > waits.c.ti_id, _NEWER.c.created_at > waits.c.created_at),
        ),
    )
