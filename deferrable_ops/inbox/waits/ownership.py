"""Which of a task's attempts owns it: the newest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, exists, or_, select

from deferrable_ops.inbox.database.schema import IS_WAITING, same_task, waits

# Made once: an alias has an object for each column, and they refer to each other. Of one for each transaction that
# registers waits, the garbage would lie among the waits until it is collected, and leave holes there.
_MINE: Final = waits.alias("mine")
_NEWER: Final = waits.alias("newer")


def stale_among_tasks_of(wait_ids: Sequence[str]) -> Select[Any]:
    """Select the ids of the waits that still wait although a newer attempt of one of these waits' tasks is there."""
    return (
        select(waits.c.id)
        .join(_MINE, same_task(_MINE, waits))
        .where(_MINE.c.id.in_(wait_ids), IS_WAITING, has_newer_attempt())
    )


def has_newer_attempt() -> ColumnElement[bool]:
    """Whether a newer attempt of a wait's task is registered."""
    # Three clocks tell which of two attempts is the newer one, and each can be wrong: the try number starts again when
    # a run is deleted and made again; Airflow's ids, UUIDs of version 7, sort by the time of whichever machine made
    # them, and can stay the same over a retry; a trigger that was paused may register late. Two of them decide.
    later_try = _NEWER.c.try_number > waits.c.try_number
    return exists().where(
        same_task(_NEWER, waits),
        or_(
            and_(later_try, _NEWER.c.ti_id >= waits.c.ti_id),
            and_(later_try, _NEWER.c.created_at >= waits.c.created_at),
            and_(_NEWER.c.ti_id > waits.c.ti_id, _NEWER.c.created_at > waits.c.created_at),
        ),
    )
