"""SQLAlchemy engines for SQLite and Postgres, and the settings of their connections."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import event, make_url
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from deferrable_ops.exceptions import DeploymentError


def parse_url(url: str) -> URL:
    """Parse a database URL.

    :raises DeploymentError: if the string is not a database URL.
    """
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        # Drop the cause, because its message may contain the password.
        raise DeploymentError(
            "[deferrable_ops] inbox_url is not a database URL; use postgresql+asyncpg://user:password@host/database, "
            "and escape : / @ ? in the password as %3A %2F %40 %3F"
        ) from None


def is_in_memory(url: URL) -> bool:
    """Return whether a URL leads to an in-memory SQLite database. Such a database exists only as long as its
    connection.
    """
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def sqlite_engine(url: URL, *, busy_timeout: float) -> AsyncEngine:
    """Return an engine for a SQLite file or an in-memory database.

    :param busy_timeout: how many seconds a statement waits for a locked SQLite file before the statement fails.
    :raises DeploymentError: if the SQLite file cannot be created, read or written.
    """
    in_memory = is_in_memory(url)
    if not in_memory:
        _create_private_file(Path(str(url.database)))
    # If Airflow's logging level is DEBUG, aiosqlite would log every parameter, such as payloads and signing keys.
    logging.getLogger("aiosqlite").setLevel(logging.INFO)
    engine = create_async_engine(
        url,
        connect_args={"timeout": busy_timeout},
        hide_parameters=True,
        poolclass=AsyncAdaptedQueuePool,
        # A second connection would open another in-memory database.
        pool_size=1 if in_memory else 3,
        max_overflow=0,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # The driver must not begin transactions itself: _on_begin begins them.
        connection.isolation_level = None
        cursor = connection.cursor()
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = FULL")
        except BaseException:
            # If the connection stayed open, its thread would keep the process running.
            connection.close()
            raise
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _on_begin(connection: Any) -> None:
        # Write transactions use BEGIN IMMEDIATE: a transaction that reads first and then writes can fail with "database
        # is locked" at once, regardless of the timeout.
        immediate = connection.get_execution_options().get("immediate")
        begin = "BEGIN IMMEDIATE" if immediate else "BEGIN"
        # Use the driver, which makes one call to its thread. A cursor of SQLAlchemy makes three.
        connection.connection.dbapi_connection.run_async(lambda driver: driver.execute_fetchall(begin))

    return engine


def _create_private_file(path: Path) -> None:
    # Mode 600, because the file contains the signing keys; SQLite gives its -wal and -shm files the same mode. An
    # existing file must not be opened here: closing it would release the POSIX locks that SQLite holds on it in this
    # process, and another process could then truncate the write-ahead log while it is in use.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        if not os.access(path, os.R_OK | os.W_OK):
            raise DeploymentError(
                "[deferrable_ops] inbox_url: the user of this process cannot read and write the file "
                f"{path}; change its owner or mode"
            ) from None
    except OSError as error:
        raise DeploymentError(
            f"[deferrable_ops] inbox_url: the file {path} cannot be created ({error.strerror}); check that its folder "
            "exists, and that the user of this process may write to this folder"
        ) from None


def postgres_engine(url: URL, current: Callable[[], URL], *, pooled: bool) -> AsyncEngine:
    """Return an engine for a Postgres server.

    :param current: a function that returns the current database URL. Each new connection uses the user and the password
        of the returned URL.
    :param pooled: whether the connections may go through a pooler in transaction mode, such as PgBouncer.
    :raises DeploymentError: if asyncpg is not installed, or if the URL has a parameter that asyncpg does not support.
    """
    try:
        asyncpg = import_module("asyncpg")
    except ModuleNotFoundError as error:
        raise DeploymentError(
            f"the inbox's Postgres driver is not installed: {error}; "
            'run pip install "airflow-deferrable-ops[postgres]" on every Airflow machine'
        ) from error
    known = {*inspect.signature(asyncpg.connect).parameters, "prepared_statement_cache_size"}
    if unknown := sorted(set(url.query) - known):
        raise DeploymentError(
            f"[deferrable_ops] inbox_url has parameters that asyncpg does not support: {', '.join(unknown)}; "
            "remove them, and for TLS use ?ssl=require or ?ssl=verify-full"
        )
    connect_args: dict[str, Any] = {
        "timeout": 10,
        "command_timeout": 60,
        "server_settings": {"application_name": "deferrable_ops"},
    }
    if pooled:
        # Each transaction may get another server connection, on which earlier statements are not prepared.
        connect_args |= {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: f"deferrable_ops_{uuid4().hex}",
        }
    engine = create_async_engine(
        url, pool_size=5, max_overflow=4, connect_args=connect_args, hide_parameters=True
    )

    @event.listens_for(engine.sync_engine, "do_connect")
    def _use_current_login(_dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
        login = current()
        parameters |= {"user": login.username, "password": login.password}

    @event.listens_for(engine.sync_engine, "handle_error")
    def _disconnect_from_standby(context: ExceptionContext) -> None:
        # After a failover, open connections to the former primary still work but are read-only: reconnect.
        if type(context.original_exception.__cause__).__name__ == "ReadOnlySQLTransactionError":
            context.is_disconnect = True

    return engine
