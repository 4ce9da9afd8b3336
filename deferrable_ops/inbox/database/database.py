"""The inbox's database, SQLite or Postgres: reads, write transactions, retries, the clock and named locks."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from sqlalchemy import Table, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops import settings
from deferrable_ops.backoff import Backoff
from deferrable_ops.exceptions import DeploymentError, InboxError, InboxUnavailable
from deferrable_ops.inbox.database.engines import is_in_memory, parse_url, postgres_engine, sqlite_engine
from deferrable_ops.inbox.database.failures import (
    describe,
    describe_with_fix,
    fix_of,
    is_database_error,
    is_misconfiguration,
    is_outage,
    is_rejected_login,
)
from deferrable_ops.inbox.database.schema import locks
from deferrable_ops.outages import INBOX, REPORT_LASTS, outages

log = logging.getLogger(__name__)
T = TypeVar("T")

WAITS_CHANNEL: Final = "deferrable_ops_waits"
"""Postgres notification channel for changed waits. The payload is wait ids, separated by commas."""
EVENTS_CHANNEL: Final = "deferrable_ops_events"
"""Postgres notification channel for new events. The payload is the source; it is empty if the source is too long."""

# A Postgres notification payload is limited to 8,000 bytes.
_IDS_PER_NOTIFICATION = 150
_FIRST_BACKOFF, _MAX_BACKOFF = 0.05, 5.0
_CLOSE_SECONDS = 5.0
_SQLITE_BUSY_TIMEOUT = 20.0

# The first statement of a write transaction. It returns the version and the time for all rows that the transaction
# writes. On Postgres the version is the transaction id; inbox/changes.py explains why its cursor then misses no row.
# The two settings are made in each transaction, so that they also apply behind a connection pooler. The timeout
# releases the locks of a process that stopped during a transaction.
_BEGIN = {
    "sqlite": "UPDATE deferrable_ops_counter SET value = value + 1 "
    "RETURNING value AS version, (julianday('now') - 2440587.5) * 86400.0 AS now",
    "postgresql": "SELECT pg_current_xact_id()::text::bigint AS version, "
    "extract(epoch from clock_timestamp())::double precision AS now, "
    "set_config('synchronous_commit', 'on', true), "
    "set_config('idle_in_transaction_session_timeout', '10s', true)",
}
_NOW = {
    "sqlite": "SELECT (julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "SELECT extract(epoch from clock_timestamp())::double precision",
}


@dataclass(slots=True)
class Transaction:
    """A write transaction.

    :param now: the time at the start of the transaction by the database's clock, in seconds since the epoch.
    :param version: a number that increases with every transaction, and is written to the row of each wait that the
        transaction changes.
    :param changed: the ids of the waits that the transaction changes. The triggers of the changed waits are notified
        after the commit.
    """

    connection: AsyncConnection
    now: float
    version: int
    changed: set[str] = field(default_factory=set)


class Database:
    """Runs reads and writes on the database, and retries a read or write while the database does not answer.

    The caller passes a read or a write as a function, so that the function can run again after a lost connection.

    :param url: the database URL, ``sqlite+aiosqlite://...`` or ``postgresql+asyncpg://...``
    :param retry_timeout: how many seconds a read or write is retried while the database does not answer. If the timeout
        is infinite, a read or write is also retried after an error that a user must correct, such as a missing
        permission.
    :param read_url: a function that returns the current database URL. The function is called when the database rejects
        the login, because the password may have been rotated. If `read_url` is None, the URL is not read again.
    :param sqlite_busy_timeout: how many seconds a statement waits for a locked SQLite file before the statement fails.
    :raises DeploymentError: if the URL is invalid, or its driver is not installed.
    """

    def __init__(
        self,
        url: str,
        retry_timeout: float,
        read_url: Callable[[], str] | None = None,
        *,
        sqlite_busy_timeout: float = _SQLITE_BUSY_TIMEOUT,
    ) -> None:
        self.url = parse_url(url)
        self._read_url = read_url
        self.dialect = self.url.get_backend_name()
        self.retry_timeout = retry_timeout
        self.notify = self.dialect == "postgresql" and settings.notify()
        self.in_memory = is_in_memory(self.url)
        if self.dialect == "sqlite":
            self.engine = sqlite_engine(self.url, busy_timeout=sqlite_busy_timeout)
        else:
            self.engine = postgres_engine(self.url, lambda: self.url, pooled=not self.notify)
        self._reading = self._writing = self.engine
        self.interrupted_at = -math.inf
        """When the database last answered again after an outage, in seconds since the epoch."""
        if self.dialect == "sqlite":
            self._writing = self.engine.execution_options(immediate=True)
        if self.notify:
            # Autocommit reads the same data as READ COMMITTED, without the round trips of BEGIN and ROLLBACK. If notify
            # is off, there may be a pooler. Then reads need a transaction: it keeps them on one server connection, and
            # a prepared statement exists only on the connection that prepared it.
            self._reading = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self.on_commit: Callable[[set[str]], None] = lambda changed: None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._has_answered = False

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run ``work`` on a connection, and return its result.

        :raises InboxError: if the database rejected a statement.
        :raises InboxUnavailable: if the database did not answer within the retry timeout.
        """

        async def attempt() -> T:
            async with self._reading.connect() as connection:
                return await work(connection)

        return await self.retry(attempt)

    async def write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run ``work`` in a transaction, and return its result after the commit.

        ``work`` must be idempotent, because it may run more than once.

        :raises InboxError: if the database rejected a statement.
        :raises InboxUnavailable: if the database did not answer within the retry timeout. In this case, the transaction
            may have been committed.
        """

        async def attempt() -> T:
            async with self.begin() as connection:
                version, now, *_ = await self._first_row(connection, _BEGIN)
                transaction = Transaction(connection, now, version)
                result = await work(transaction)
                if self.notify and transaction.changed:
                    await _notify(transaction)
            if transaction.changed:
                self.on_commit(transaction.changed)
            return result

        return await self.retry(attempt)

    async def try_lock(self, name: str, seconds: float) -> bool:
        """Acquire a named lock for some seconds, for work that only one process may do at a time.

        :return: whether the lock was acquired; False if another process holds the lock. The lock cannot be released
            earlier: it ends after `seconds` seconds.
        """

        async def write(transaction: Transaction) -> bool:
            new = self.insert(locks).values(name=name, free_at=0.0)
            await transaction.connection.execute(new.on_conflict_do_nothing())
            acquired = await transaction.connection.execute(
                update(locks)
                .where(locks.c.name == name, locks.c.free_at <= transaction.now)
                .values(free_at=transaction.now + seconds)
            )
            return acquired.rowcount == 1

        return await self.write(write)

    def insert(self, table: Table) -> Any:
        """Return an SQLAlchemy INSERT statement that supports ``ON CONFLICT`` on this database."""
        return (postgresql if self.dialect == "postgresql" else sqlite).insert(table)

    async def now(self) -> float:
        """Return the current time by the database's clock, in seconds since the epoch."""
        return await self.read(self.clock)

    async def clock(self, connection: AsyncConnection) -> float:
        """Return the current time by the database's clock, in seconds since the epoch.

        The clock is read over the given database connection.
        """
        return float((await self._first_row(connection, _NOW))[0])

    async def _first_row(self, connection: AsyncConnection, statement: dict[str, str]) -> Sequence[Any]:
        if self.dialect == "sqlite":
            row: Sequence[Any] = (await run_by_driver(connection, statement["sqlite"]))[0]
            return row
        # On Postgres, SQLAlchemy sends BEGIN only with a statement that goes through SQLAlchemy.
        return (await connection.exec_driver_sql(statement["postgresql"])).one()

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run a coroutine as an asyncio task, which continues if the caller is cancelled.

        :meth:`close` waits up to 5 s for the asyncio task.
        """
        # In an empty context: the task outlives the trigger that started it, and must not write to that trigger's log.
        task = asyncio.create_task(work, name=f"deferrable-ops {name}", context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Wait up to 5 s for running writes, then close every connection."""
        if self._tasks:
            _, slow = await asyncio.wait(self._tasks, timeout=_CLOSE_SECONDS)
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
        await self.engine.dispose()

    def begin(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Begin a write transaction without a version and without notifications, for migrations and tests."""
        return self._writing.begin()

    async def retry(self, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Call the function `attempt` and return its result. While the database does not answer, call `attempt` again.

        :raises DeploymentError: if the database rejected the login or lacks permissions.
        :raises InboxError: if the database rejected a statement.
        :raises InboxUnavailable: if the database did not answer within the retry timeout.
        """
        give_up_at = time.monotonic() + self.retry_timeout
        backoff = Backoff(first_pause=_FIRST_BACKOFF, longest_pause=_MAX_BACKOFF)
        problem = ""
        while True:
            try:
                if self.in_memory:
                    # A cancelled statement closes its connection, and an in-memory database is lost with it.
                    return await asyncio.shield(self.spawn(attempt(), "query"))
                async with asyncio.timeout(self._attempt_timeout(give_up_at)):
                    result = await attempt()
                self._has_answered = True
                if backoff.failures:
                    self.interrupted_at = time.time()
                    outages.recovered(INBOX)
                return result
            except Exception as error:
                if not is_database_error(error):
                    raise
                if not is_outage(error) and not await self._may_recover(error):
                    raise _permanent(error) from None
                pause = backoff.failed()
                # The timeout of an attempt shows no cause, but an earlier error may have shown it.
                if not problem or not isinstance(error, TimeoutError):
                    problem = describe_with_fix(error)
                if self.retry_timeout == math.inf:
                    outages.failed(INBOX, problem, lasts=REPORT_LASTS)
                if time.monotonic() + pause > give_up_at:
                    raise InboxUnavailable(f"the inbox does not answer: {problem}") from None
                log.warning("The inbox does not answer; retrying in %.1f s: %s", pause, problem)
            await asyncio.sleep(pause)

    async def _may_recover(self, error: Exception) -> bool:
        """Return whether a call is retried after an error that is not an outage.

        The call is retried in three cases: the database rejected a login that worked before; the database rejected the
        login, but ``inbox_url`` now has another login; or the retry timeout is infinite and a user must correct the
        deployment.
        """
        if is_rejected_login(error) and self._read_url is not None:
            # In a thread, because reading the option may run a command or ask a secrets backend.
            try:
                new = parse_url(await asyncio.to_thread(self._read_url))
            except DeploymentError as unreadable:
                log.warning("Could not read inbox_url again; the previous login is used: %s", unreadable)
                new = self.url
            if (new.username, new.password) != (self.url.username, self.url.password):
                log.warning(
                    "The inbox's database rejected the login; inbox_url now has another login, which is used instead"
                )
                self.url = self.url.set(username=new.username, password=new.password)
                return True
            if self._has_answered:
                # The password is being rotated, and inbox_url does not contain the new password yet.
                return True
        return self.retry_timeout == math.inf and is_misconfiguration(error)

    def _attempt_timeout(self, give_up_at: float) -> float | None:
        if self.dialect == "sqlite" or give_up_at == math.inf:
            # A call on a SQLite file waits only for a lock, and the driver has a timeout for that.
            return None
        return max(0.0, give_up_at - time.monotonic())


async def run_by_driver(connection: AsyncConnection, statement: str, *parameters: Any) -> Sequence[Any]:
    """Run an SQL statement with the database driver, without SQLAlchemy, and return its rows.

    Use this function for statements that run very often.

    SQLAlchemy takes 200 µs per statement (measured), and makes three or four calls to the thread of the SQLite driver
    instead of one. On Postgres, the first statement of a transaction must go through SQLAlchemy, because SQLAlchemy
    sends BEGIN with that statement.
    """
    driver: Any = (await connection.get_raw_connection()).driver_connection
    if connection.dialect.name == "sqlite":
        rows: Sequence[Any] = await driver.execute_fetchall(statement, parameters)
    else:
        rows = await driver.fetch(statement, *parameters)
    return rows


async def _notify(transaction: Transaction) -> None:
    ids = sorted(transaction.changed)
    payloads = [
        ",".join(ids[start : start + _IDS_PER_NOTIFICATION])
        for start in range(0, len(ids), _IDS_PER_NOTIFICATION)
    ]
    notify = "SELECT pg_notify($1, ids) FROM unnest($2::text[]) AS ids"
    await run_by_driver(transaction.connection, notify, WAITS_CHANNEL, payloads)


def _permanent(error: Exception) -> Exception:
    if is_misconfiguration(error):
        return DeploymentError(
            f"[deferrable_ops] inbox_url: cannot use the database: {describe(error)}; {fix_of(error)}"
        )
    return InboxError(f"the inbox's database rejected a statement: {describe(error)}")
