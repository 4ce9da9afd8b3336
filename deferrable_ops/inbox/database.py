"""One database behind the inbox: SQLite or Postgres, their clocks, their write transactions, and how they fail."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from sqlalchemy import event, make_url, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from deferrable_ops import settings
from deferrable_ops.exceptions import ConfigurationError, InboxUnavailable

log = logging.getLogger(__name__)
T = TypeVar("T")

CHANNEL: Final = "deferrable_ops_waits"
"""The Postgres notification channel; a payload is wait ids, separated by commas."""

_IDS_PER_NOTIFICATION = 150  # a payload holds 8,000 bytes at the most
_SQLITE_BUSY_SECONDS = 20
_PAUSE_FIRST, _PAUSE_MOST = 0.05, 5.0

# Read inside the transaction, so that every row of it agrees. Postgres' transaction id doubles as the version: rows
# that commit late have a version at or above the oldest open snapshot's, which makes the sweep's cursor exact.
_BEGIN = {
    "sqlite": "UPDATE deferrable_ops_counter SET value = value + 1 "
    "RETURNING value AS version, (julianday('now') - 2440587.5) * 86400.0 AS now",
    "postgresql": "SELECT pg_current_xact_id()::text::bigint AS version, "
    "extract(epoch from clock_timestamp())::double precision AS now",
}
_NOW = {
    "sqlite": "SELECT (julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "SELECT extract(epoch from clock_timestamp())::double precision",
}


@dataclass(slots=True)
class Transaction:
    """A write transaction.

    :param now: the database's clock, in seconds since the epoch.
    :param version: grows with every transaction; written to each wait that changes.
    :param changed: ids of the waits whose triggers are woken once it is committed.
    """

    connection: AsyncConnection
    now: float
    version: int
    changed: set[str] = field(default_factory=set)


class Database:
    """The inbox's engine. Reads and writes are functions, because a lost connection runs them again.

    :param url: ``sqlite+aiosqlite://...`` or ``postgresql+asyncpg://...``
    :param patience: for how many seconds a read or write is tried again while the database does not answer.
    """

    def __init__(self, url: str, patience: float) -> None:
        self.url = make_url(url)
        self.dialect = self.url.get_backend_name()
        self.patience = patience
        self.in_memory = self.dialect == "sqlite" and self.url.database in (None, "", ":memory:")
        self.engine = _sqlite_engine(self) if self.dialect == "sqlite" else _postgres_engine(self)
        self.on_commit: Callable[[set[str]], None] = lambda changed: None

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Return what ``work`` reads.

        :raises InboxUnavailable: the database did not answer within the patience.
        """

        async def attempt() -> T:
            async with self.engine.connect() as connection:
                return await work(connection)

        return await self.persist(attempt)

    async def write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Return what ``work`` returns, once it is committed. It may run twice, so it must not mind.

        :raises InboxUnavailable: the database did not answer within the patience.
        """

        async def attempt() -> T:
            async with self.begin() as connection:
                row = (await connection.execute(text(_BEGIN[self.dialect]))).one()
                transaction = Transaction(connection, row.now, row.version)
                result = await work(transaction)
                await self._notify(transaction)
            if transaction.changed:
                self.on_commit(transaction.changed)
            return result

        return await self.persist(attempt)

    async def now(self) -> float:
        """Return the database's clock, in seconds since the epoch."""

        return await self.read(self.clock)

    async def clock(self, connection: AsyncConnection) -> float:
        """Return the database's clock as one connection reads it."""
        return float((await connection.execute(text(_NOW[self.dialect]))).scalar_one())

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()

    def begin(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Begin a bare write transaction."""
        if self.dialect == "sqlite":
            return self.engine.execution_options(immediate=True).begin()
        return self.engine.begin()

    async def _notify(self, transaction: Transaction) -> None:
        if self.dialect != "postgresql" or not settings.notify():
            return
        ids = sorted(transaction.changed)
        for start in range(0, len(ids), _IDS_PER_NOTIFICATION):
            await transaction.connection.execute(
                text("SELECT pg_notify(:channel, :ids)"),
                {"channel": CHANNEL, "ids": ",".join(ids[start : start + _IDS_PER_NOTIFICATION])},
            )

    async def persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return what the attempt returns, made again while the database is away.

        :raises InboxUnavailable: it was away for longer than the patience.
        """
        give_up_at = time.monotonic() + self.patience
        pause = _PAUSE_FIRST
        while True:
            try:
                return await attempt()
            except (DBAPIError, OSError, TimeoutError) as error:
                if not is_outage(error):
                    raise
                if time.monotonic() + pause > give_up_at:
                    raise InboxUnavailable(f"the inbox does not answer: {_first_line(error)}") from error
                log.warning("The inbox does not answer, trying again: %s", _first_line(error))
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSE_MOST)


def is_outage(error: BaseException) -> bool:
    """Return whether the database is only away for now: refused, restarted, locked or timed out."""
    if isinstance(error, DBAPIError):
        if error.connection_invalidated or isinstance(error, (OperationalError, InterfaceError)):
            return True
        name = type(error.orig.__cause__ or error.orig).__name__ if error.orig else ""
        return name in _OUTAGES
    return isinstance(error, (OSError, TimeoutError)) or type(error).__name__ in _OUTAGES


_OUTAGES = frozenset(
    {
        "AdminShutdownError",
        "CannotConnectNowError",
        "ConnectionDoesNotExistError",
        "ConnectionFailureError",
        "CrashShutdownError",
        "DeadlockDetectedError",
        "InterfaceError",
        "InternalClientError",
        "PostgresConnectionError",
        "SerializationError",
        "TooManyConnectionsError",
    }
)


def _first_line(error: BaseException) -> str:
    # SQLAlchemy appends the statement and its parameters, which may hold payloads.
    original = getattr(error, "orig", None) or error
    return f"{type(original).__name__}: {str(original).splitlines()[0] if str(original) else 'no message'}"


def _sqlite_engine(database: Database) -> AsyncEngine:
    if not database.in_memory:
        _create_private_file(str(database.url.database))
    engine = create_async_engine(
        database.url,
        connect_args={"timeout": _SQLITE_BUSY_SECONDS},
        poolclass=AsyncAdaptedQueuePool,
        # A database in memory lives in its one connection.
        pool_size=1 if database.in_memory else 3,
        max_overflow=0,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing on its own: _on_begin does
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _on_begin(connection: Any) -> None:
        # A transaction that reads first and then wants to write fails with "locked" at once, whatever the timeout.
        immediate = connection.get_execution_options().get("immediate")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def _create_private_file(path: str) -> None:
    # The file holds the signing keys. SQLite gives its -wal and -shm the same mode.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise ConfigurationError(f"the inbox's file {path} cannot be written: {error.strerror}") from error


def _postgres_engine(database: Database) -> AsyncEngine:
    try:
        return create_async_engine(
            database.url,
            pool_size=4,
            max_overflow=4,
            pool_pre_ping=False,
            connect_args={
                "timeout": 10,
                "command_timeout": 60,
                "server_settings": {
                    "application_name": "deferrable_ops",
                    "synchronous_commit": "on",
                    "idle_in_transaction_session_timeout": "60000",
                },
            },
        )
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the inbox's Postgres driver is missing: {error}; "
            'pip install "airflow-deferrable-ops[postgres]" on every Airflow machine'
        ) from error
