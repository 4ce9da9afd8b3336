"""Which endpoints are up, and since when: heartbeats that had nowhere to go are not held against a wait."""

from __future__ import annotations

import asyncio
import logging
from uuid import uuid4

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.exceptions import DeferrableOpsError
from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.schema import IS_WAITING, endpoints, waits

log = logging.getLogger(__name__)

_SEEN_EVERY = 1.0
_GONE_AFTER = 4.0


class Endpoints:
    """The endpoints that share this inbox."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def up_since(self) -> float | None:
        """Return since when beats could have arrived, in seconds since the epoch; None when no endpoint is up.

        With several endpoints it is the youngest's start: which of them a service reaches is not known.
        """

        async def read(connection: AsyncConnection) -> float | None:
            now = await self._database.clock(connection)
            query = select(func.max(endpoints.c.up_since)).where(endpoints.c.seen_at > now - _GONE_AFTER)
            found: float | None = (await connection.execute(query)).scalar_one()
            return found

        return await self._database.read(read)

    async def announce(self) -> None:
        """Say every second that this endpoint is up, while any wait expects beats. Runs until cancelled."""
        identity = uuid4().hex
        while True:
            try:
                if await self._database.read(_some_wait_expects_beats):
                    await self._database.write(lambda transaction: self._see(transaction, identity))
            except DeferrableOpsError as error:
                log.warning("The endpoint cannot announce itself: %s", error)
            await asyncio.sleep(_SEEN_EVERY)

    async def _see(self, transaction: Transaction, identity: str) -> None:
        now = transaction.now
        seen = await transaction.connection.execute(
            update(endpoints)
            .where(endpoints.c.id == identity, endpoints.c.seen_at > now - _GONE_AFTER)
            .values(seen_at=now)
        )
        if seen.rowcount:
            return
        started = {"up_since": now, "seen_at": now}
        await transaction.connection.execute(
            self._database.insert(endpoints)
            .values(id=identity, **started)
            .on_conflict_do_update(index_elements=[endpoints.c.id], set_=started)
        )
        await transaction.connection.execute(delete(endpoints).where(endpoints.c.seen_at < now - 3600))


async def _some_wait_expects_beats(connection: AsyncConnection) -> bool:
    # The minimum is at the edge of its index, whatever a planner believes about the rest.
    first = select(func.min(waits.c.beat_due)).where(IS_WAITING, waits.c.beat_due.is_not(None))
    return (await connection.execute(first)).scalar_one() is not None
