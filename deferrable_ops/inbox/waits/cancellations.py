"""Outside work that is due to be stopped: whose turn it is, and whether it was done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import and_, case, not_, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.schema import CANCEL_IS_DUE, same_task, waits

_LEASE: Final = 60.0
_TRIES: Final = 10


@dataclass(frozen=True, slots=True)
class Cancellation:
    """A wait whose outside work is due to be stopped.

    :param trigger: the encrypted classpath and kwargs of the trigger that knows how.
    """

    wait_id: str
    trigger: bytes


class Cancellations:
    """Hands out what is due, to one process at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, wait_id: str | None = None) -> Cancellation | None:
        """Return one that is due, for the next 60 s this caller's; None when there is none.

        While a process holds the claim on the wait's launch there is none yet: it may be sending the request, and what
        is stopped before it starts would run.

        :param wait_id: only this wait's.
        """

        async def probe(connection: AsyncConnection) -> str | None:
            now = await self._database.clock(connection)
            launching = and_(waits.c.launch_lease.is_not(None), waits.c.launch_lease > now)
            due = select(waits.c.id).where(
                CANCEL_IS_DUE,
                waits.c.cancel_lease <= now,
                or_(waits.c.launched_at.is_not(None), not_(launching)),
            )
            due = due if wait_id is None else due.where(waits.c.id == wait_id)
            return (await connection.execute(due.limit(1))).scalar()

        async def write(transaction: Transaction) -> Cancellation | None:
            taken = await transaction.connection.execute(
                update(waits)
                .where(waits.c.id == found, CANCEL_IS_DUE, waits.c.cancel_lease <= transaction.now)
                .values(cancel_lease=transaction.now + _LEASE, cancel_tries=waits.c.cancel_tries + 1)
                .returning(waits.c.id, waits.c.trigger)
            )
            row = taken.first()
            return None if row is None else Cancellation(row.id, row.trigger)

        while (found := await self._database.read(probe)) is not None:
            cancellation = await self._database.write(write)
            if cancellation is not None:  # otherwise another process was quicker
                return cancellation
        return None

    async def mark_stopped(self, cancellation: Cancellation) -> None:
        """Record that the outside work was stopped."""

        async def write(transaction: Transaction) -> None:
            await transaction.connection.execute(
                update(waits).where(waits.c.id == cancellation.wait_id).values(cancel="done", trigger=None)
            )

        await self._database.write(write)

    async def mark_failed(self, cancellation: Cancellation) -> bool:
        """Record that it could not be stopped; return whether it will be tried again, at most 10 times in all."""

        async def write(transaction: Transaction) -> bool:
            given_up = waits.c.cancel_tries >= _TRIES
            updated = await transaction.connection.execute(
                update(waits)
                .where(waits.c.id == cancellation.wait_id, CANCEL_IS_DUE)
                .values(cancel=case((given_up, "failed"), else_=waits.c.cancel))
                .returning(waits.c.cancel)
            )
            return bool(updated.scalar() == "due")

        return await self._database.write(write)

    async def requeue_other_attempts(self, wait_id: str) -> list[str]:
        """Return the waits of other attempts of a wait's task whose outside work is still to be stopped.

        What was given up is due again: an attempt asks because it cannot start beside that work.
        """
        mine = waits.alias("mine")
        others = (
            select(waits.c.id, waits.c.cancel)
            .join(mine, same_task(mine, waits))
            .where(mine.c.id == wait_id, waits.c.id != wait_id, waits.c.cancel.in_(["due", "failed"]))
            .order_by(waits.c.id)
        )

        async def read(connection: AsyncConnection) -> dict[str, str]:
            return {row.id: row.cancel for row in await connection.execute(others)}

        async def write(transaction: Transaction) -> None:
            await transaction.connection.execute(
                update(waits)
                .where(waits.c.id.in_(given_up), waits.c.cancel == "failed", waits.c.trigger.is_not(None))
                .values(cancel="due", cancel_lease=transaction.now, cancel_tries=0)
            )

        left = await self._database.read(read)
        given_up = [other for other, cancel in left.items() if cancel == "failed"]
        if given_up:
            await self._database.write(write)
        return list(left)
