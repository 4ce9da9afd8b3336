"""How a process learns that waits have changed: which ids, since when, and what wakes it to look.

The cursor is a version. On SQLite write transactions are serial, so the counter grows in commit order. On Postgres it is
the transaction id, and the cursor is the oldest transaction that was still open at the last look: a row that commits
late is at or above it. Rows are therefore seen again at times, and never missed.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops import settings
from deferrable_ops.inbox.database import CHANNEL, Database
from deferrable_ops.inbox.schema import waits

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_RECONNECT_SECONDS = 1.0
_CURSOR = {
    "sqlite": "SELECT value FROM deferrable_ops_counter",
    "postgresql": "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1",
}


async def read_cursor(database: Database) -> int:
    """Return the cursor of this moment: whatever is committed from now on lies behind it."""

    async def read(connection: AsyncConnection) -> int:
        return int((await connection.execute(sa.text(_CURSOR[database.dialect]))).scalar_one())

    return await database.read(read)


async def read_changes(database: Database, cursor: int) -> tuple[list[str], int]:
    """Return the ids of the waits that changed since the cursor, and the next cursor."""

    async def read(connection: AsyncConnection) -> tuple[list[str], int]:
        following = int((await connection.execute(sa.text(_CURSOR[database.dialect]))).scalar_one())
        rows = await connection.execute(sa.select(waits.c.id).where(waits.c.version > cursor))
        return list(rows.scalars()), following

    return await database.read(read)


class Signal(Protocol):
    """What wakes a watcher between its sweeps."""

    sweep_every: float
    """Seconds between two looks for what a lost signal would have told."""

    async def run(self) -> None:
        """Wake the watcher, until cancelled."""


class DataVersionSignal:
    """SQLite: ``PRAGMA data_version`` differs once another connection has committed."""

    sweep_every = 5.0

    def __init__(self, database: Database, on_change: Callable[[set[str] | None], None]) -> None:
        self._path = str(database.url.database)
        self._on_change = on_change

    async def run(self) -> None:
        """Wake the watcher, until cancelled."""
        connection = sqlite3.connect(
            self._path, timeout=0
        )  # reads shared memory only: nothing here blocks the loop
        try:
            seen = -1
            while True:
                try:
                    version = connection.execute("PRAGMA data_version").fetchone()[0]
                except sqlite3.OperationalError:
                    version = -1
                if version != seen:
                    seen = version
                    self._on_change(None)
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            connection.close()


class NotificationSignal:
    """Postgres: LISTEN on a connection of its own. Each reconnect is a reason to look."""

    sweep_every = 30.0

    def __init__(self, database: Database, on_change: Callable[[set[str] | None], None]) -> None:
        self._url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._on_change = on_change

    async def run(self) -> None:
        """Wake the watcher, until cancelled."""
        import asyncpg

        while True:
            try:
                connection = await asyncpg.connect(
                    self._url, timeout=10, server_settings={"application_name": "deferrable_ops watcher"}
                )
                try:
                    await self._listen(connection)
                finally:
                    connection.terminate()
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
                log.warning(
                    "The inbox's notifications are interrupted (%s); reconnecting", type(error).__name__
                )
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _listen(self, connection: Any) -> None:
        closed = asyncio.get_running_loop().create_future()
        connection.add_termination_listener(lambda _connection: closed.done() or closed.set_result(None))
        await connection.add_listener(
            CHANNEL, lambda *notification: self._on_change(set(notification[3].split(",")))
        )
        self._on_change(None)
        await closed


class NoSignal:
    """Nothing wakes the watcher: it sweeps often. For a pooler that cannot LISTEN, and for a database in memory."""

    sweep_every = 1.0

    async def run(self) -> None:
        """Do nothing, until cancelled."""
        await asyncio.Event().wait()


def signal_for(database: Database, on_change: Callable[[set[str] | None], None]) -> Signal:
    """Return what wakes a watcher of this database.

    :param on_change: called with the ids that changed, or with None when only a look can tell.
    """
    if database.in_memory:
        return NoSignal()
    if database.dialect == "sqlite":
        return DataVersionSignal(database, on_change)
    return NotificationSignal(database, on_change) if settings.notify() else NoSignal()
