"""Finds changes in the inbox: a signal announces that a row has changed, and a query returns the changed waits.

The signals also announce new events, which :mod:`deferrable_ops.inbox.events.feed` reads.

Each transaction writes its version to the rows of the waits that it changes. A cursor is such a version: the query
returns the waits with a higher version. On SQLite, the version is a counter, which increases in commit order because
write transactions run one at a time. On Postgres, the version is the transaction id, and transactions may commit in
another order than they begin. To miss no transaction, the cursor on Postgres is just below the id of the oldest
transaction that was open at the last query. Every transaction that commits later has an id above the cursor. So the
query may return a wait twice, but it never misses a changed wait.

After a restart or a failover, a Postgres server may have lost transactions, and may assign the ids of the lost
transactions again. Because the ids can repeat, a cursor is valid only until the server restarts.
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

_POLL_INTERVAL = 0.05
_RESTART_SECONDS = 1.0
_CURSOR = {
    "sqlite": "SELECT value AS position, '' AS server FROM deferrable_ops_counter",
    "postgresql": "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1 AS position, "
    "pg_postmaster_start_time()::text AS server",
}


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in the sequence of the database's commits. A query with this cursor returns the waits that changed
    later.

    :param server: the start time of the Postgres server, because a cursor is valid only until the server restarts; ""
        on SQLite.
    """

    position: int
    server: str


async def read_changes(database: Database, cursor: Cursor | None) -> tuple[list[str] | None, Cursor]:
    """Return the ids of the waits that changed since the cursor, and the next cursor.

    If any wait may have changed, return None instead of the ids. This is the case without a cursor, and after a restart
    of the Postgres server.
    """

    async def read(connection: AsyncConnection) -> tuple[list[str] | None, Cursor]:
        row = (await connection.execute(sa.text(_CURSOR[database.dialect]))).one()
        following = Cursor(row.position, row.server)
        if cursor is None or cursor.server != following.server:
            return None, following
        changed = sa.select(waits.c.id).where(waits.c.version > cursor.position, HAS_CHANGED)
        return list((await connection.execute(changed)).scalars()), following

    return await database.read(read)


ChangeListener = Callable[[set[str] | None], None]
"""A function that receives the ids of changed waits or the sources of new events, or None if they are unknown."""


class Signal(Protocol):
    """Calls the listeners when waits or events in the database have changed."""

    sweep_interval: float
    """Seconds between two sweeps: queries that find changes whose signal was lost."""

    async def run(self) -> None:
        """Call the listeners at each change, until this coroutine is cancelled."""


class DataVersionSignal:
    """The signal for SQLite: polls ``PRAGMA data_version``, a number that changes when another connection has
    committed.
    """

    sweep_interval = 5.0

    def __init__(self, database: Database, on_change: ChangeListener, on_events: ChangeListener) -> None:
        self._path = str(database.url.database)
        self._on_change = on_change
        self._on_events = on_events

    async def run(self) -> None:
        """Call the listeners at each change, until this coroutine is cancelled."""
        # The pragma only reads shared memory, so it does not block the event loop.
        with closing(sqlite3.connect(self._path, timeout=0)) as connection:
            seen = -1
            while True:
                try:
                    version = connection.execute("PRAGMA data_version").fetchone()[0]
                except sqlite3.OperationalError:
                    # The file is locked: treat this as a change.
                    version = -1
                if version != seen:
                    seen = version
                    self._on_change(None)
                    self._on_events(None)
                await asyncio.sleep(_POLL_INTERVAL)


class NotificationSignal:
    """The signal for Postgres: runs LISTEN on a dedicated connection.

    A reconnect is treated as a change, because notifications may have been lost before the reconnect.
    """

    sweep_interval = 30.0

    def __init__(self, database: Database, on_change: ChangeListener, on_events: ChangeListener) -> None:
        self._engine = database.engine
        self._on_change = on_change
        self._on_events = on_events

    async def run(self) -> None:
        """Call the listeners at each change, until the database connection is lost or this coroutine is cancelled."""
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
                # The pool must not reuse a connection that listens.
                await connection.invalidate()
        raise ConnectionError("the connection to the inbox's database was closed")

    def _on_notification(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        self._on_change(set(payload.split(",")))

    def _on_new_events(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        self._on_events({payload} if payload else None)


class NoSignal:
    """A signal that never calls the listeners, for an in-memory database or a pooler without LISTEN.

    A query every second (a sweep) finds the changes.
    """

    sweep_interval = 1.0

    async def run(self) -> None:
        """Do nothing until this coroutine is cancelled."""
        await asyncio.Event().wait()


def create_signal(database: Database, on_change: ChangeListener, on_events: ChangeListener) -> Signal:
    """Create the signal that fits a database.

    :param on_change: a function that is called with the ids of changed waits, or with None if any wait may have
        changed.
    :param on_events: a function that is called with the sources of new events, or with None if the sources are unknown.
    """
    if database.in_memory:
        return NoSignal()
    if database.dialect == "sqlite":
        return DataVersionSignal(database, on_change, on_events)
    return NotificationSignal(database, on_change, on_events) if database.notify else NoSignal()


async def keep_running(signal: Signal) -> None:
    """Run a signal until this coroutine is cancelled. After an error, restart the signal.

    Queries at regular intervals (sweeps) find the changes that the signal did not announce.
    """
    while True:
        try:
            await signal.run()
        except Exception as error:
            log.warning(
                "Change notifications of the inbox are interrupted; reconnecting in %g s: %s",
                _RESTART_SECONDS,
                describe(error),
            )
        await asyncio.sleep(_RESTART_SECONDS)
