"""Records the running endpoints. While no endpoint runs, no task fails because of missing heartbeats."""

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

_ANNOUNCE_INTERVAL = 1.0
_DOWN_AFTER = 4.0


class Endpoints:
    """The endpoints that share this inbox.

    :param announce_interval: seconds between two updates of an endpoint's row in the inbox.
    :param down_after: an endpoint is treated as down if its row was not updated for this many seconds.
    """

    def __init__(
        self,
        database: Database,
        *,
        announce_interval: float = _ANNOUNCE_INTERVAL,
        down_after: float = _DOWN_AFTER,
    ) -> None:
        self._database = database
        self._announce_interval = announce_interval
        self._down_after = down_after

    async def up_since(self) -> float | None:
        """Return the time since which an endpoint has been running without a gap, in seconds since the epoch.

        Return None if no endpoint is running. If several endpoints are running, return the start time of the endpoint
        that started last, because it is unknown which endpoint a service calls.
        """

        async def read(connection: AsyncConnection) -> float | None:
            now = await self._database.clock(connection)
            query = select(func.max(endpoints.c.up_since)).where(endpoints.c.seen_at > now - self._down_after)
            found: float | None = (await connection.execute(query)).scalar_one()
            return found

        return await self._database.read(read)

    async def announce(self) -> None:
        """Record every second that this endpoint is running, if any waiting task expects heartbeats.

        This method runs until it is cancelled.
        """
        identity = uuid4().hex
        while True:
            try:
                if await self._database.read(_any_wait_expects_heartbeats):
                    await self._database.write(lambda transaction: self._record(transaction, identity))
            except DeferrableOpsError as error:
                log.warning("Cannot record that this endpoint is running; retrying: %s", error)
            await asyncio.sleep(self._announce_interval)

    async def _record(self, transaction: Transaction, identity: str) -> None:
        now = transaction.now
        seen = await transaction.connection.execute(
            update(endpoints)
            .where(endpoints.c.id == identity, endpoints.c.seen_at > now - self._down_after)
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


async def _any_wait_expects_heartbeats(connection: AsyncConnection) -> bool:
    # min() reads the first entry of an index, regardless of the planner's statistics.
    first = select(func.min(waits.c.beat_due)).where(IS_WAITING, waits.c.beat_due.is_not(None))
    return (await connection.execute(first)).scalar_one() is not None
