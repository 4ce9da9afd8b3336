"""How a process learns that waits have changed: which ids, since when, and what wakes it to look.

The same signals, on the same connection, tell of new events, which :mod:`deferrable_ops.inbox.events.feed` reads.

The cursor is a version. On SQLite write transactions are serial, so the counter grows in commit order. On Postgres it
is the transaction id, and the cursor is the oldest transaction that was still open at the last look: a row that commits
late is at or above it. Rows are therefore seen again at times, and never missed. A server that was restarted, or that
stands in for another, may have lost transactions whose ids it gives out again: the cursor ends with the server.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.inbox.database.database import EVENTS_CHANNEL, WAITS_CHANNEL, Database
from deferrable_ops.inbox.database.failures import describe
from deferrable_ops.inbox.database.schema import HAS_CHANGED, waits

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_RESTART_SECONDS = 1.0
_CURSOR = {
    "sqlite": "SELECT value AS position, '' AS server FROM deferrable_ops_counter",
    "postgresql": "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1 AS position, "
    "pg_postmaster_start_time()::text AS server",
}


@dataclass(frozen=True, slots=True)
class Cursor:
    """A moment in the life of a database: whatever is committed after it lies behind it."""

    position: int
    server: str


async def read_changes(database: Database, cursor: Cursor | None) -> tuple[list[str] | None, Cursor]:
    """Return the ids of the waits that changed since the cursor, and the next cursor.

    The ids are None where only a look at every wait can tell: without a cursor, or on another server.
    """

    async def read(connection: AsyncConnection) -> tuple[list[str] | None, Cursor]:
        row = (await connection.execute(sa.text(_CURSOR[database.dialect]))).one()
        following = Cursor(row.position, row.server)
        if cursor is None or cursor.server != following.server:
            return None, following
        changed = sa.select(waits.c.id).where(waits.c.version > cursor.position, HAS_CHANGED)
        return list((await connection.execute(changed)).scalars()), following

    return await database.read(read)


Told = Callable[[set[str] | None], None]
"""Called with what is new, or with None when only a look can tell."""


class Signal(Protocol):
    """What wakes a process between its sweeps."""

    sweep_every: float
    """Seconds between two looks for what a lost signal would have told."""

    async def run(self) -> None:
        """Wake the process, until cancelled."""


class DataVersionSignal:
    """SQLite: ``PRAGMA data_version`` differs once another connection has committed."""

    sweep_every = 5.0

    def __init__(self, database: Database, on_change: Told, on_events: Told) -> None:
        self._path = str(database.url.database)
        self._on_change = on_change
        self._on_events = on_events

    async def run(self) -> None:
        """Wake the process, until cancelled."""
        # It reads shared memory only: nothing here blocks the loop.
        with closing(sqlite3.connect(self._path, timeout=0)) as connection:
            seen = -1
            while True:
                try:
                    version = connection.execute("PRAGMA data_version").fetchone()[0]
                except sqlite3.OperationalError:  # locked for a moment
                    version = -1
                if version != seen:
                    seen = version
                    self._on_change(None)
                    self._on_events(None)
                await asyncio.sleep(_POLL_SECONDS)


class NotificationSignal:
    """Postgres: LISTEN on a connection of its own. Each reconnect is a reason to look."""

    sweep_every = 30.0

    def __init__(self, database: Database, on_change: Told, on_events: Told) -> None:
        self._engine = database.engine
        self._on_change = on_change
        self._on_events = on_events

    async def run(self) -> None:
        """Wake the process until the connection is lost, or until cancelled."""
        lost = asyncio.Event()
        async with self._engine.connect() as connection:
            raw = await connection.get_raw_connection()
            listening: Any = raw.driver_connection
            listening.add_termination_listener(lambda _connection: lost.set())
            try:
                await listening.add_listener(WAITS_CHANNEL, self._on_notification)
                await listening.add_listener(EVENTS_CHANNEL, self._on_new_events)
                self._on_change(None)
                self._on_events(None)
                await lost.wait()
            finally:
                await connection.invalidate()  # the pool must not hand out a connection that listens
        raise ConnectionError("the connection was closed")

    def _on_notification(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        self._on_change(set(payload.split(",")))

    def _on_new_events(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        self._on_events({payload} if payload else None)


class NoSignal:
    """Nothing wakes the process: it sweeps often. For a pooler that cannot LISTEN, and for a database in memory."""

    sweep_every = 1.0

    async def run(self) -> None:
        """Do nothing, until cancelled."""
        await asyncio.Event().wait()


def signal_for(database: Database, on_change: Told, on_events: Told) -> Signal:
    """Return what wakes a process that watches this database.

    :param on_change: told the ids of waits that changed.
    :param on_events: told the sources of new events.
    """
    if database.in_memory:
        return NoSignal()
    if database.dialect == "sqlite":
        return DataVersionSignal(database, on_change, on_events)
    return NotificationSignal(database, on_change, on_events) if database.notify else NoSignal()


async def keep_running(signal: Signal) -> None:
    """Run the signal, and again when it breaks off, until cancelled. Meanwhile the sweep finds what it would tell."""
    while True:
        try:
            await signal.run()
        except Exception as error:
            log.warning("The inbox's signals are interrupted, trying again: %s", describe(error))
        await asyncio.sleep(_RESTART_SECONDS)
