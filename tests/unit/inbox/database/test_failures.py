from __future__ import annotations

import sqlite3
import ssl

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from deferrable_ops.inbox.database.failures import describe, is_database_error, is_misconfiguration, is_outage

asyncpg = pytest.importorskip("asyncpg")


def wrapped(cause: Exception) -> DBAPIError:
    """Return the error as SQLAlchemy hands it on."""
    return DBAPIError("INSERT ...", {"payload": "secret"}, cause, hide_parameters=True)


def sqlite_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("told by SQLite")
    error.sqlite_errorcode = code
    return error


AWAY = [
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
    asyncpg.InterfaceError("connection is closed"),
    sqlite_error(sqlite3.SQLITE_BUSY),
    sqlite_error(sqlite3.SQLITE_BUSY | 2 << 8),
    sqlite_error(sqlite3.SQLITE_FULL),
]
WRONG = [
    asyncpg.InvalidPasswordError("password authentication failed"),
    asyncpg.InvalidAuthorizationSpecificationError("no pg_hba.conf entry"),
    asyncpg.InvalidCatalogNameError('database "x" does not exist'),
    asyncpg.InsufficientPrivilegeError("permission denied"),
    ssl.SSLCertVerificationError("self-signed certificate"),
    sqlite_error(sqlite3.SQLITE_READONLY),
    sqlite_error(sqlite3.SQLITE_NOTADB),
]
REFUSED = [
    asyncpg.UndefinedTableError("relation does not exist"),
    asyncpg.UniqueViolationError("duplicate key"),
    asyncpg.DataError("invalid input for query argument $1: 'secret'"),
    sqlite_error(sqlite3.SQLITE_ERROR),
    sqlite3.IntegrityError("UNIQUE constraint failed"),
]


@pytest.mark.parametrize("wrap", [lambda error: error, wrapped])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *((error, "away") for error in AWAY),
        *((error, "set up wrongly") for error in WRONG),
        *((error, "refused") for error in REFUSED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_goes_wrong_is_told_apart(error: Exception, kind: str, wrap: object) -> None:
    shown = wrap(error)  # type: ignore[operator]
    assert is_database_error(shown)
    assert is_misconfiguration(shown) is (kind == "set up wrongly")
    if kind != "set up wrongly":  # asked first, so the answer to the other question does not matter
        assert is_outage(shown) is (kind == "away")
    assert "secret" not in describe(shown)


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), RuntimeError("a bug")])
def test_a_bug_is_not_taken_for_the_databases_fault(error: Exception) -> None:
    assert not is_database_error(error)


def test_only_the_first_line_is_told() -> None:
    assert describe(asyncpg.UniqueViolationError("duplicate key\nDETAIL: Key (a)=(secret)")) == (
        "UniqueViolationError: duplicate key"
    )
