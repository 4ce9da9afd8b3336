"""Classification of database errors: an outage, a misconfiguration, or a rejected statement.

The error message of a database driver may contain statement parameters, which can be payloads or secrets. Therefore
logs and exceptions contain only the result of :func:`describe`, not the driver's error message.
"""

from __future__ import annotations

import sqlite3
import ssl
from typing import Final

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

# The package of the exceptions in which SQLAlchemy wraps asyncpg's errors.
_TRANSLATED: Final = "sqlalchemy.dialects."
# asyncpg may not be installed. Therefore its errors are recognized by their class names.
_OUTAGES: Final = frozenset(
    {
        "IdleInTransactionSessionTimeoutError",
        "InsufficientResourcesError",  # too many connections, disk full, out of memory
        "InterfaceError",  # the connection is closed
        "InternalClientError",
        "InvalidCachedStatementError",  # the tables changed under a prepared statement
        "LockNotAvailableError",
        "OperatorInterventionError",  # shut down, starting up, cancelled
        "PostgresConnectionError",
        "ReadOnlySQLTransactionError",  # connected to a standby, during a failover
        "TransactionRollbackError",  # deadlock, serialization
    }
)
_MISCONFIGURATIONS: Final = frozenset(
    {
        "ClientConfigurationError",
        "InsufficientPrivilegeError",
        "InvalidAuthorizationSpecificationError",  # no such role, wrong password, no pg_hba entry
        "InvalidCatalogNameError",  # no such database
        "InvalidSchemaNameError",
        "UndefinedColumnError",  # tables of another release, or a partial restore
        "UndefinedTableError",
    }
)
# Errors whose message contains parameters.
_QUOTING: Final = frozenset({"DataError", "ValueError"})
_SQLITE_OUTAGES: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
    }
)
_SQLITE_MISCONFIGURATIONS: Final = frozenset(
    {
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)


def is_database_error(error: BaseException) -> bool:
    """Return whether an error comes from the database, the database driver or the network."""
    if isinstance(error, (DBAPIError, PoolTimeout, sqlite3.Error, OSError, TimeoutError)):
        return True
    return type(error).__module__.startswith(("asyncpg.", _TRANSLATED))


def is_rejected_login(error: BaseException) -> bool:
    """Return whether the database rejected the user or the password."""
    return "InvalidAuthorizationSpecificationError" in _names(_cause(error))


def is_misconfiguration(error: BaseException) -> bool:
    """Return whether an error shows that the deployment must be fixed, for example a wrong password."""
    cause = _cause(error)
    if isinstance(cause, sqlite3.Error):
        return _sqlite_code(cause) in _SQLITE_MISCONFIGURATIONS
    return isinstance(cause, ssl.SSLCertVerificationError) or bool(_names(cause) & _MISCONFIGURATIONS)


def is_outage(error: BaseException) -> bool:
    """Return whether a retry after an error can succeed: after a lost connection, a restart, a lock or a timeout."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    cause = _cause(error)
    if isinstance(cause, sqlite3.Error):
        return _sqlite_code(cause) in _SQLITE_OUTAGES
    if isinstance(cause, (OSError, TimeoutError, PoolTimeout)):
        return True
    # A ValueError means a wrong parameter, even if the error has another base class that means an outage.
    return bool(_names(cause) & _OUTAGES) and not isinstance(cause, ValueError)


def describe(error: BaseException) -> str:
    """Return the error's class and the first line of its message.

    If the error message may contain a parameter of an SQL statement, return only the error's class.
    """
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
    # The higher bits of an extended result code distinguish variants of one error.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
