"""Stores the outages that this host sees: the inbox has one row for each host and each system that the host cannot
reach.

The command ``deferrable-ops waits`` shows the outages.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.exceptions import DeferrableOpsError
from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.schema import outages, waits
from deferrable_ops.outages import INBOX, Outage, Outages
from deferrable_ops.outages import outages as of_this_process

log = logging.getLogger(__name__)

_INTERVAL: Final = 10.0
_ROWS_PER_QUERY: Final = 500
# A shorter outage gets no row.
_SHORTEST: Final = 5.0
# The time of the last failure in a row is updated at most this often, in seconds.
_UPDATE_EVERY: Final = 60.0
# A row that was not updated for this long belongs to a process that has ended.
_STALE: Final = 300.0


@dataclass(frozen=True, slots=True)
class StoredOutage:
    """A row of the inbox about a system that does not answer a host. Times are seconds since the epoch by the
    database's clock.
    """

    source: str
    host: str
    since: float
    seen_at: float
    error: str


class OutageRows:
    """Stores the outages that this process sees, and reads the outages that all processes have stored.

    :param seen: the outages that this process sees, which :meth:`store` writes to the inbox.
    """

    def __init__(self, database: Database, seen: Outages = of_this_process, host: str | None = None) -> None:
        self._database = database
        self._seen = seen
        self._host = host or socket.gethostname()
        # By source, the start of the stored outage and the time when it was stored, by the clock of `seen`.
        self._stored: dict[str, tuple[float, float]] = {}

    async def run(self) -> None:
        """Call :meth:`store` every 10 s. This method runs until it is cancelled."""
        while True:
            try:
                await self.store()
            except DeferrableOpsError as error:
                log.warning("Cannot record in the inbox which services do not answer; retrying: %s", error)
            await asyncio.sleep(_INTERVAL)

    async def store(self) -> None:
        """Add a row for each new outage, and delete the rows of ended outages.

        The rows of outages that have not ended are updated once a minute.
        """
        now = self._seen.now()
        # While the inbox does not answer, nothing can be stored in it.
        active = {one.source: one for one in self._seen.active() if one.source != INBOX}
        over = [source for source in self._stored if source not in active]
        due = [one for one in active.values() if self._is_due(one, now)]
        if not over and not due:
            return

        async def write(transaction: Transaction) -> None:
            if over:
                mine = outages.c.host == self._host
                await transaction.connection.execute(delete(outages).where(mine, outages.c.source.in_(over)))
            for one in due:
                row = {
                    "since": transaction.now - (now - one.since),
                    "seen_at": transaction.now - (now - one.seen_at),
                    "error": one.error,
                }
                await transaction.connection.execute(
                    self._database.insert(outages)
                    .values(source=one.source, host=self._host, **row)
                    .on_conflict_do_update(index_elements=[outages.c.source, outages.c.host], set_=row)
                )

        await self._database.write(write)
        for source in over:
            del self._stored[source]
        self._stored |= {one.source: (one.since, now) for one in due}

    async def all(self) -> list[StoredOutage]:
        """Return the outages of all hosts that have not ended, the oldest outage first."""

        async def read(connection: AsyncConnection) -> list[StoredOutage]:
            now = await self._database.clock(connection)
            rows = await connection.execute(
                select(outages).where(outages.c.seen_at > now - _STALE).order_by(outages.c.since)
            )
            return [StoredOutage(row.source, row.host, row.since, row.seen_at, row.error) for row in rows]

        return await self._database.read(read)

    async def of_waits(self, wait_ids: Iterable[str]) -> dict[str, list[StoredOutage]]:
        """Return a dict from a wait's id to the outages of the systems on which the wait depends.

        A wait that depends on no system with an outage is missing from the dict.
        """
        found = await self.all()
        if not found:
            return {}
        chosen = list(wait_ids)

        async def read(connection: AsyncConnection) -> dict[str, list[str]]:
            by_wait: dict[str, list[str]] = {}
            for start in range(0, len(chosen), _ROWS_PER_QUERY):
                page = waits.c.id.in_(chosen[start : start + _ROWS_PER_QUERY])
                rows = await connection.execute(
                    select(waits.c.id, waits.c.sources).where(page, waits.c.sources.is_not(None))
                )
                by_wait |= {row.id: json.loads(row.sources) for row in rows}
            return by_wait

        sources = await self._database.read(read)
        return {
            wait_id: mine
            for wait_id, names in sources.items()
            if (mine := [one for one in found if one.source in names])
        }

    def _is_due(self, outage: Outage, now: float) -> bool:
        since, at = self._stored.get(outage.source, (None, 0.0))
        if since != outage.since:
            return now - outage.since >= _SHORTEST
        return now - at >= _UPDATE_EVERY
