"""Ends waits that get no callback: their task was killed or has a newer attempt, or a deadline or heartbeat timeout
passed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, case, exists, false, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.schema import IS_WAITING, waits
from deferrable_ops.inbox.owner import Owner
from deferrable_ops.inbox.waits.wait import WaitState
from deferrable_ops.outcome import Failure, outcome_to_json

_ROWS_PER_TRANSACTION: Final = 500
_NO_HEARTBEAT = json.dumps(outcome_to_json(Failure("no heartbeat arrived within heartbeat_timeout")))

# If no triggerer has run the trigger of a wait for this many seconds, a deadline that can pause is paused.
_SEEN_LASTS: Final = 15.0
# The longest pause, 30 days. After it, also the wait of a deleted task ends.
_LONGEST_PAUSE: Final = 30 * 86_400.0
_PAUSES: Final = and_(IS_WAITING, waits.c.seen_at.is_not(None))


async def expire(database: Database, owner: Owner, beats_since: float | None) -> float:
    """Settle the waits whose deadline has passed or whose heartbeats are missing.

    Return the seconds until the next deadline. If this process does not belong to the inbox's owner, settle no wait,
    and return infinity.

    :param beats_since: the time since which both an endpoint and the watcher of this process have been running, in
        seconds since the epoch; see :meth:`deferrable_ops.inbox.waits.waits.Waits.expire`.
    """

    async def look(connection: AsyncConnection) -> tuple[bool, float]:
        now = await database.clock(connection)
        first = (await connection.execute(_first_due(now))).one()
        left = float("inf") if first.deadline is None else first.deadline - now
        if left <= 0:
            return True, left
        if beats_since is None or first.beat is None or first.beat > now:
            return False, left
        silent = exists().where(IS_WAITING, _is_silent(now, beats_since))
        return bool((await connection.execute(select(silent))).scalar_one()), left

    async def write(transaction: Transaction) -> bool:
        if not await owner.permits(transaction.connection):
            return False
        late, silent = _is_late(transaction.now), _is_silent(transaction.now, beats_since)
        await end_waits(transaction, WaitState.EXPIRED, await _select_ids(transaction, late), late)
        await end_waits(
            transaction,
            WaitState.FAILED,
            await _select_ids(transaction, silent),
            silent,
            outcome=_NO_HEARTBEAT,
        )
        return True

    while True:
        due, left = await database.read(look)
        if not due:
            return left
        if not await database.write(write):
            return float("inf")


async def end_waits(
    transaction: Transaction,
    state: WaitState,
    chosen: Sequence[str],
    *conditions: ColumnElement[bool],
    outcome: str | None = None,
) -> None:
    """Settle those of the chosen waits that are in the state ``waiting`` and meet the conditions.

    The external work of the settled waits is marked for cancellation.
    """
    if not chosen:
        return
    # Lock the rows in the order of their ids, as callbacks do. Different orders could deadlock.
    ending = select(waits.c.id).where(waits.c.id.in_(chosen), IS_WAITING, *conditions)
    ids = (
        (await transaction.connection.execute(ending.order_by(waits.c.id).with_for_update())).scalars().all()
    )
    await transaction.connection.execute(
        update(waits)
        .where(waits.c.id.in_(ids))
        .values(
            state=state,
            outcome=outcome,
            settled_at=transaction.now,
            version=transaction.version,
            **cancellation_values(transaction),
        )
    )
    transaction.changed.update(ids)


def cancellation_values(transaction: Transaction) -> dict[str, Any]:
    """Return the column values that mark external work for cancellation. Waits without external work are not marked."""
    # A cancellation that is already due keeps its lease, because a process may be carrying it out.
    idle = and_(waits.c.cancel.is_(None), waits.c.trigger.is_not(None))
    return {
        "cancel": case((idle, "due"), else_=waits.c.cancel),
        "cancel_lease": case((idle, transaction.now), else_=waits.c.cancel_lease),
    }


async def mark_seen(database: Database, wait_ids: Collection[str]) -> None:
    """Record that a triggerer runs the triggers of these waits, and move the waits' deadlines; see
    :meth:`Waits.mark_seen`.

    Waits whose deadline does not pause are ignored.
    """

    async def find(connection: AsyncConnection) -> list[str]:
        pausing = (await connection.execute(select(waits.c.id).where(_PAUSES))).scalars()
        return sorted({*pausing} & {*wait_ids})

    async def write(transaction: Transaction) -> None:
        unseen_for = transaction.now - waits.c.seen_at
        moved = case((unseen_for > _SEEN_LASTS, unseen_for), else_=0.0)
        # Lock the rows in the order of their ids, as callbacks do. Different orders could deadlock.
        locked = select(waits.c.id).where(waits.c.id.in_(chosen), _PAUSES).order_by(waits.c.id)
        ids = (await transaction.connection.execute(locked.with_for_update())).scalars().all()
        await transaction.connection.execute(
            update(waits)
            .where(waits.c.id.in_(ids))
            .values(deadline=waits.c.deadline + moved, seen_at=transaction.now)
        )

    chosen = await database.read(find)
    if chosen:
        await database.write(write)


def _first_due(now: float) -> Select[tuple[float | None, float | None]]:
    # min() reads the first entry of an index, regardless of the planner's statistics.
    first = select(func.min(waits.c.deadline)).where(IS_WAITING, _counts(now))
    beat = select(func.min(waits.c.beat_due)).where(IS_WAITING, waits.c.beat_due.is_not(None))
    return select(first.scalar_subquery().label("deadline"), beat.scalar_subquery().label("beat"))


def _counts(now: float) -> ColumnElement[bool]:
    """Return the SQL condition that is true for a wait whose deadline is not paused at the time `now`."""
    seen_at = waits.c.seen_at
    return or_(seen_at.is_(None), seen_at >= now - _SEEN_LASTS, seen_at < now - _LONGEST_PAUSE)


def _is_late(now: float) -> ColumnElement[bool]:
    return and_(waits.c.deadline <= now, _counts(now))


def _is_silent(now: float, beats_since: float | None) -> ColumnElement[bool]:
    if beats_since is None:
        return false()
    return and_(waits.c.beat_due <= now, waits.c.heartbeat_timeout + beats_since <= now)


async def _select_ids(transaction: Transaction, condition: ColumnElement[bool]) -> Sequence[str]:
    query = select(waits.c.id).where(IS_WAITING, condition).limit(_ROWS_PER_TRANSACTION)
    return (await transaction.connection.execute(query)).scalars().all()
