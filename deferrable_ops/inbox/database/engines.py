"""The engines of the two databases: how their connections are made, and what every connection is told."""

from __future__ import annotations

import inspect
import logging
import os
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import event, make_url
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from deferrable_ops.exceptions import ConfigurationError

_SQLITE_BUSY_SECONDS = 20


def parse_url(url: str) -> URL:
    """Return the URL of a database.

    :raises ConfigurationError: it is not one.
    """
    try:
        return make_url(url)
    except (ArgumentError, ValueError):  # which may quote the password
        raise ConfigurationError(
            "[deferrable_ops] inbox_url is not a database URL; write postgresql+asyncpg://user:password@host/database, "
            "with : / @ ? in the password as %3A %2F %40 %3F"
        ) from None


def is_in_memory(url: URL) -> bool:
    """Return whether the database lives in its one connection."""
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def sqlite_engine(url: URL) -> AsyncEngine:
    """Return the engine of a SQLite file, or of a database in memory.

    :raises ConfigurationError: the file cannot be made, read and written.
    """
    in_memory = is_in_memory(url)
    if not in_memory:
        _create_private_file(Path(str(url.database)))
    # At DEBUG, which Airflow may be set to, aiosqlite logs every parameter: payloads, and the keys that sign tokens.
    logging.getLogger("aiosqlite").setLevel(logging.INFO)
    engine = create_async_engine(
        url,
        connect_args={"timeout": _SQLITE_BUSY_SECONDS},
        hide_parameters=True,
        poolclass=AsyncAdaptedQueuePool,
        # A database in memory lives in its one connection.
        pool_size=1 if in_memory else 3,
        max_overflow=0,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing on its own: _on_begin does
        cursor = connection.cursor()
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()  # its thread would keep the process from ending
            raise
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _on_begin(connection: Any) -> None:
        # A transaction that reads first and then wants to write fails with "locked" at once, whatever the timeout.
        immediate = connection.get_execution_options().get("immediate")
        begin = "BEGIN IMMEDIATE" if immediate else "BEGIN"
        # Straight to the driver: its thread is asked once, where a cursor of SQLAlchemy's asks it three times.
        connection.connection.dbapi_connection.run_async(lambda driver: driver.execute_fetchall(begin))

    return engine


def _create_private_file(path: Path) -> None:
    # The file holds the signing keys; SQLite gives its -wal and -shm the same mode. A file that exists is not opened:
    # closing it would drop the locks that SQLite holds on it elsewhere in this process, and another's last close would
    # then cut the log that is in use here.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        if not os.access(path, os.R_OK | os.W_OK):
            raise ConfigurationError(
                f"[deferrable_ops] inbox_url: the file {path} cannot be read and written by this user"
            ) from None
    except OSError as error:
        raise ConfigurationError(
            f"[deferrable_ops] inbox_url: the file {path} cannot be made: {error.strerror}"
        ) from None


def postgres_engine(url: URL, *, pooled: bool) -> AsyncEngine:
    """Return the engine of a Postgres server.

    :param pooled: a pooler in transaction mode may stand in between.
    :raises ConfigurationError: the driver is missing, or does not know a parameter of the URL.
    """
    try:
        asyncpg = import_module("asyncpg")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the inbox's Postgres driver is missing: {error}; "
            'pip install "airflow-deferrable-ops[postgres]" on every Airflow machine'
        ) from error
    known = {*inspect.signature(asyncpg.connect).parameters, "prepared_statement_cache_size"}
    if unknown := sorted(set(url.query) - known):
        raise ConfigurationError(
            f"[deferrable_ops] inbox_url has parameters that asyncpg does not know: {', '.join(unknown)}; "
            "for TLS write ?ssl=require or ?ssl=verify-full"
        )
    connect_args: dict[str, Any] = {
        "timeout": 10,
        "command_timeout": 60,
        "server_settings": {"application_name": "deferrable_ops"},
    }
    if pooled:  # it may hand a connection with its prepared statements to others
        connect_args |= {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: f"deferrable_ops_{uuid4().hex}",
        }
    engine = create_async_engine(
        url, pool_size=5, max_overflow=4, connect_args=connect_args, hide_parameters=True
    )

    @event.listens_for(engine.sync_engine, "handle_error")
    def _leave_the_standby(context: ExceptionContext) -> None:
        # After a failover the connections to what was the primary are of no use, though they are sound.
        if type(context.original_exception.__cause__).__name__ == "ReadOnlySQLTransactionError":
            context.is_disconnect = True

    return engine
