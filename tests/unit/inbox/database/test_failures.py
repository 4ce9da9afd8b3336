from __future__ import annotations

import sqlite3
import ssl

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from deferrable_ops.inbox.database.failures import (
    describe,
    describe_with_fix,
    is_database_error,
    is_misconfiguration,
    is_outage,
)

asyncpg = pytest.importorskip("asyncpg")


def wrapped(cause: Exception) -> DBAPIError:
    """Return the error as SQLAlchemy wraps it."""
    return DBAPIError("INSERT ...", {"payload": "secret"}, cause, hide_parameters=True)


def sqlite_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("an error of SQLite")
    error.sqlite_errorcode = code
    return error


OUTAGES = [
    ConnectionRefusedError(111, "refused"),
    TimeoutError(),
    PoolTimeout("no connection left"),
    asyncpg.CannotConnectNowError("the database system is starting up"),
    asyncpg.AdminShutdownError("terminating connection"),
    asyncpg.ConnectionDoesNotExistError("closed in the middle"),
    asyncpg.TooManyConnectionsError("too many clients"),
    asyncpg.DeadlockDetectedError("deadlock detected"),
    asyncpg.LockNotAvailableError("lock timeout"),
    asyncpg.ReadOnlySQLTransactionError("read-only transaction"),
    asyncpg.DiskFullError("could not extend file: No space left on device"),
    asyncpg.InterfaceError("connection is closed"),
    sqlite_error(sqlite3.SQLITE_BUSY),
    sqlite_error(sqlite3.SQLITE_BUSY | 2 << 8),
    sqlite_error(sqlite3.SQLITE_FULL),
]
MISCONFIGURATIONS = [
    asyncpg.InvalidPasswordError("password authentication failed"),
    asyncpg.InvalidAuthorizationSpecificationError("no pg_hba.conf entry"),
    asyncpg.InvalidCatalogNameError('database "x" does not exist'),
    asyncpg.InsufficientPrivilegeError("permission denied"),
    asyncpg.UndefinedTableError("relation does not exist"),
    asyncpg.InvalidSQLStatementNameError('prepared statement "__asyncpg_stmt_1__" does not exist'),
    asyncpg.DuplicatePreparedStatementError('prepared statement "__asyncpg_stmt_1__" already exists'),
    ssl.SSLCertVerificationError("self-signed certificate"),
    sqlite_error(sqlite3.SQLITE_READONLY),
    sqlite_error(sqlite3.SQLITE_NOTADB),
]
REJECTED = [
    asyncpg.UniqueViolationError("duplicate key"),
    asyncpg.DataError("invalid input for query argument $1: 'secret'"),
    sqlite_error(sqlite3.SQLITE_ERROR),
    sqlite3.IntegrityError("UNIQUE constraint failed"),
]


@pytest.mark.parametrize("wrap", [lambda error: error, wrapped])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *((error, "outage") for error in OUTAGES),
        *((error, "misconfiguration") for error in MISCONFIGURATIONS),
        *((error, "rejected") for error in REJECTED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_errors_are_classified(error: Exception, kind: str, wrap: object) -> None:
    shown = wrap(error)  # type: ignore[operator]
    assert is_database_error(shown)
    assert is_misconfiguration(shown) is (kind == "misconfiguration")
    if kind != "misconfiguration":
        assert is_outage(shown) is (kind == "outage")
    assert "secret" not in describe(shown)


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (asyncpg.TooManyConnectionsError("sorry, too many clients already"), "max_connections"),
        (asyncpg.DiskFullError("No space left on device"), "free space on the database server"),
        (sqlite_error(sqlite3.SQLITE_FULL), "free space on the disk"),
        (asyncpg.ReadOnlySQLTransactionError("read-only transaction"), "not to a read-only replica"),
        (asyncpg.InvalidSQLStatementNameError("does not exist"), "[deferrable_ops] notify = False"),
        (asyncpg.DuplicatePreparedStatementError("already exists"), "[deferrable_ops] notify = False"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_description_of_an_operating_fault_names_the_fix(error: Exception, fix: str) -> None:
    assert fix in describe_with_fix(wrapped(error))


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), RuntimeError("a bug")])
def test_other_errors_are_not_database_errors(error: Exception) -> None:
    assert not is_database_error(error)


def test_describe_returns_only_the_first_line() -> None:
    assert describe(asyncpg.UniqueViolationError("duplicate key\nDETAIL: Key (a)=(secret)")) == (
        "UniqueViolationError: duplicate key"
    )
