"""How a database fails: it is away for now, it is set up wrongly, or it refuses what it was asked.

What a driver raises may quote parameters, which hold payloads and secrets. So only what :func:`describe` says of it
leaves this package.
"""

from __future__ import annotations

import sqlite3
import ssl
from typing import Final

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

_TRANSLATED: Final = "sqlalchemy.dialects."  # where SQLAlchemy keeps its own versions of asyncpg's errors
# asyncpg may not be installed: its errors are told by the names of their classes.
_AWAY: Final = frozenset(
    {
        "IdleInTransactionSessionTimeoutError",
        "InsufficientResourcesError",  # too many connections, disk full, out of memory
        "InterfaceError",  # the connection is closed
        "InternalClientError",
        "InvalidCachedStatementError",  # the tables changed under a prepared statement
        "LockNotAvailableError",
        "OperatorInterventionError",  # shut down, starting up, cancelled
        "PostgresConnectionError",
        "ReadOnlySQLTransactionError",  # a standby answers: failing over
        "TransactionRollbackError",  # deadlock, serialization
    }
)
_SET_UP_WRONGLY: Final = frozenset(
    {
        "ClientConfigurationError",
        "InsufficientPrivilegeError",
        "InvalidAuthorizationSpecificationError",  # no such role, wrong password, no pg_hba entry
        "InvalidCatalogNameError",  # no such database
    }
)
_QUOTING: Final = frozenset({"DataError", "ValueError"})  # these quote what they were given
_SQLITE_AWAY: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
    }
)
_SQLITE_SET_UP_WRONGLY: Final = frozenset(
    {
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)


def is_database_error(error: BaseException) -> bool:
    """Return whether a database, its driver or the way to it raised the error."""
    if isinstance(error, (DBAPIError, PoolTimeout, sqlite3.Error, OSError, TimeoutError)):
        return True
    return type(error).__module__.startswith(("asyncpg.", _TRANSLATED))


def is_misconfiguration(error: BaseException) -> bool:
    """Return whether only a change of the deployment helps: a wrong password, no such database, no permission."""
    cause = _cause(error)
    if isinstance(cause, sqlite3.Error):
        return _sqlite_code(cause) in _SQLITE_SET_UP_WRONGLY
    return isinstance(cause, ssl.SSLCertVerificationError) or bool(_names(cause) & _SET_UP_WRONGLY)


def is_outage(error: BaseException) -> bool:
    """Return whether the database is only away for now: refused, restarted, locked or timed out."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    cause = _cause(error)
    if isinstance(cause, sqlite3.Error):
        return _sqlite_code(cause) in _SQLITE_AWAY
    if isinstance(cause, (OSError, TimeoutError, PoolTimeout)):
        return True
    return bool(_names(cause) & _AWAY) and not isinstance(
        cause, ValueError
    )  # ValueError: a parameter is wrong


def describe(error: BaseException) -> str:
    """Return the error's class and first line, or its class alone where the line may quote a parameter."""
    cause = _cause(error)
    lines = [] if _names(cause) & _QUOTING else str(cause).splitlines()
    return f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__


def _cause(error: BaseException) -> BaseException:
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    if type(error).__module__.startswith(_TRANSLATED) and error.__cause__ is not None:
        return error.__cause__
    return error


def _names(error: BaseException) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}


def _sqlite_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest tells variants apart
