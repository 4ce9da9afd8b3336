"""Outside work that is due to be stopped: whose turn it is, and whether it was done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import select, update

from deferrable_ops.inbox.database import Database, Transaction
from deferrable_ops.inbox.schema import waits

_LEASE = 60.0
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

    async def take(self, wait_id: str | None = None) -> Cancellation | None:
        """Return one that is due, for the next 60 s this caller's; None when there is none.

        :param wait_id: only this wait's.
        """

        async def write(transaction: Transaction) -> Cancellation | None:
            due = select(waits.c.id).where(waits.c.cancel == "due", waits.c.cancel_lease <= transaction.now)
            due = due if wait_id is None else due.where(waits.c.id == wait_id)
            taken = await transaction.connection.execute(
                update(waits)
                .where(waits.c.id.in_(due.limit(1).with_for_update(skip_locked=True)))
                .values(cancel_lease=transaction.now + _LEASE, cancel_tries=waits.c.cancel_tries + 1)
                .returning(waits.c.id, waits.c.trigger)
            )
            row = taken.first()
            return None if row is None else Cancellation(row.id, row.trigger)

        return await self._database.write(write)

    async def done(self, cancellation: Cancellation) -> None:
        """Record that the outside work was stopped."""
        await self._set(cancellation, "done")

    async def failed(self, cancellation: Cancellation) -> bool:
        """Record that it could not be stopped; return whether it will be tried again, at most 10 times in all."""

        async def write(transaction: Transaction) -> bool:
            tries = select(waits.c.cancel_tries).where(waits.c.id == cancellation.wait_id)
            return int((await transaction.connection.execute(tries)).scalar_one()) < _TRIES

        again = await self._database.write(write)
        if not again:
            await self._set(cancellation, "failed")
        return again

    async def _set(self, cancellation: Cancellation, cancel: str) -> None:
        async def write(transaction: Transaction) -> None:
            await transaction.connection.execute(
                update(waits).where(waits.c.id == cancellation.wait_id).values(cancel=cancel, trigger=None)
            )

        await self._database.write(write)
