"""Decides whether a database error is an outage, a misconfiguration, or a rejected statement.

The error message of a database driver may contain statement parameters, which can be payloads or secrets. To protect
payloads and secrets, logs and exceptions contain only the result of :func:`describe`, and not the driver's error
message.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from deferrable_ops.error_table import CodeRow, ErrorKind, class_names, find_code

# The package of the exceptions in which SQLAlchemy wraps asyncpg's errors.
_TRANSLATED: Final = "sqlalchemy.dialects."
# Errors whose message contains parameters.
_QUOTING: Final = frozenset({"DataError", "ValueError"})


def is_database_error(error: BaseException) -> bool:
    """Return whether an error comes from the database, the database driver or the network."""
    if isinstance(error, (DBAPIError, PoolTimeout, sqlite3.Error, OSError, TimeoutError)):
        return True
    return type(error).__module__.startswith(("asyncpg.", _TRANSLATED))


def is_rejected_login(error: BaseException) -> bool:
    """Return whether the database rejected the user or the password."""
    return "InvalidAuthorizationSpecificationError" in class_names(_cause(error))


def is_misconfiguration(error: BaseException) -> bool:
    """Return whether an error shows that a user must correct the deployment, for example a wrong password."""
    row = _row_of(_cause(error))
    return row is not None and row.kind is ErrorKind.DEPLOYMENT


def is_outage(error: BaseException) -> bool:
    """Return whether a retry after an error can succeed: after a lost connection, a restart, a lock or a timeout."""
    cause = _cause(error)
    row = _row_of(cause)
    if row is not None and row.kind is not ErrorKind.TEMPORARY:
        return False
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    if isinstance(cause, (OSError, TimeoutError, PoolTimeout)):
        return True
    # A ValueError means a wrong parameter, even if the error has another base class that means an outage.
    return row is not None and not isinstance(cause, ValueError)


def fix_of(error: BaseException) -> str:
    """Return a text that shows a user how to correct the error; "" if the error table has no such text."""
    row = _row_of(_cause(error))
    return "" if row is None else row.fix


def describe(error: BaseException) -> str:
    """Return the error's class and the first line of its message.

    If the error message may contain a parameter of an SQL statement, return only the error's class.
    """
    cause = _cause(error)
    lines = [] if _QUOTING.intersection(class_names(cause)) else str(cause).splitlines()
    return f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__


def describe_with_fix(error: BaseException) -> str:
    """Return the result of :func:`describe`, with the text of :func:`fix_of` if there is one."""
    fix = fix_of(error)
    return f"{describe(error)}; {fix}" if fix else describe(error)


def _cause(error: BaseException) -> BaseException:
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    if type(error).__module__.startswith(_TRANSLATED) and error.__cause__ is not None:
        return error.__cause__
    return error


def _row_of(cause: BaseException) -> CodeRow | None:
    if isinstance(cause, sqlite3.Error):
        # The higher bits of an extended result code distinguish variants of one error.
        return find_code("sqlite", str(getattr(cause, "sqlite_errorcode", 0) & 0xFF))
    # asyncpg may not be installed. Therefore its errors are recognized by their class names.
    return find_code("postgres", *class_names(cause))
