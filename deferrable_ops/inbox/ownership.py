"""Which of a task's attempts owns it: the newest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, or_, select

from deferrable_ops.inbox.schema import IS_WAITING, same_task, waits


def stale_among_tasks_of(wait_ids: Sequence[str]) -> Select[Any]:
    """Select the ids of the waits that still wait although a newer attempt of one of these waits' tasks is there."""
    mine = waits.alias("mine")
    return (
        select(waits.c.id)
        .join(mine, same_task(mine, waits))
        .where(mine.c.id.in_(wait_ids), IS_WAITING, has_newer_attempt())
    )


def has_newer_attempt() -> ColumnElement[bool]:
    """Whether a newer attempt of a wait's task is registered."""
    # Three clocks tell which of two attempts is the newer one, and each can be wrong: the try number starts again when
    # a run is deleted and made again; Airflow's ids, UUIDs of version 7, sort by the time of whichever machine made
    # them, and can stay the same over a retry; a trigger that was paused may register late. Two of them decide.
    newer = waits.alias("newer")
    later_try = newer.c.try_number > waits.c.try_number
    return exists().where(
        same_task(newer, waits),
        or_(
            and_(later_try, newer.c.ti_id >= waits.c.ti_id),
            and_(later_try, newer.c.created_at >= waits.c.created_at),
            and_(newer.c.ti_id > waits.c.ti_id, newer.c.created_at > waits.c.created_at),
        ),
    )
