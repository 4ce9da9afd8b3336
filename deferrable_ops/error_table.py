"""The error table: how every error of the inbox, an external system or Airflow is handled. docs/errors.md explains it.

The kind of an error decides what happens to a task. No error stops external work. External work is stopped only because
of a user, a deadline or a newer attempt of the task.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from deferrable_ops.exceptions import (
    AirflowUnavailable,
    ConfigurationError,
    DataflowRefused,
    DataflowUnavailable,
    DeploymentError,
    InboxUnavailable,
    InputError,
    KafkaRefused,
    KafkaUnavailable,
    LaunchRefused,
    LaunchUncertain,
    MachineRefused,
    MachineUnavailable,
    SqsRefused,
    SupervisordRefused,
    SupervisordUnavailable,
)


class ErrorKind(StrEnum):
    """What an error means for a task."""

    # The task fails. If a retry cannot help, the task's `retries` are not used.
    TASK = "permanent for this task"
    # The task waits until its deadline. It never fails, and no external work is launched or stopped.
    DEPLOYMENT = "permanent for the deployment"
    # The task repeats the failed call with backoff until its deadline.
    TEMPORARY = "temporary"


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """A row of the error table, for exceptions.

    :param kind: the kind of the error while the task has not yet launched external work or read from an external
        system.
    :param once_started: the kind of the error after the task has launched external work or read from an external
        system.
    """

    what: str
    kind: ErrorKind
    once_started: ErrorKind
    exceptions: tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True)
class CodeRow:
    """A row of the error table, for error codes of one system's client library.

    :param system: the system: "postgres", "sqlite", "google", "aws", "kafka", "ssh" or "http".
    :param codes: the error codes, or the names of exception classes, to which the row applies.
    :param fix: how a user corrects the error, for the error message; "" if the row has no advice.
    """

    system: str
    what: str
    kind: ErrorKind
    codes: frozenset[str]
    fix: str = ""


# The first row that matches applies.
ERRORS: Final[tuple[ErrorRow, ...]] = (
    ErrorRow(
        "the inbox's URL, login, schema or owner; a Fernet key",
        ErrorKind.DEPLOYMENT,
        ErrorKind.DEPLOYMENT,
        (DeploymentError,),
    ),
    ErrorRow("a bad argument", ErrorKind.TASK, ErrorKind.TASK, (InputError,)),
    ErrorRow("a refused launch", ErrorKind.TASK, ErrorKind.TASK, (LaunchRefused,)),
    ErrorRow(
        "a missing connection, extra, topic, queue, job or permission; a refused login",
        ErrorKind.TASK,
        ErrorKind.TEMPORARY,
        (
            ConfigurationError,
            DataflowRefused,
            KafkaRefused,
            MachineRefused,
            SqsRefused,
            SupervisordRefused,
        ),
    ),
    ErrorRow(
        "a timeout, an HTTP status from 500, throttling, an unreachable metadata server",
        ErrorKind.TEMPORARY,
        ErrorKind.TEMPORARY,
        (
            AirflowUnavailable,
            DataflowUnavailable,
            InboxUnavailable,
            KafkaUnavailable,
            LaunchUncertain,
            MachineUnavailable,
            SupervisordUnavailable,
            ConnectionError,
            TimeoutError,
        ),
    ),
)

CODES: Final[tuple[CodeRow, ...]] = (
    CodeRow(
        "postgres",
        "a pooler in transaction mode, although notify is not False",
        ErrorKind.DEPLOYMENT,
        frozenset({"DuplicatePreparedStatementError", "InvalidSQLStatementNameError"}),
        "the database is behind a pooler in transaction mode: set [deferrable_ops] notify = False",
    ),
    CodeRow(
        "postgres",
        "a wrong login, database or permission; tables of another release",
        ErrorKind.DEPLOYMENT,
        frozenset(
            {
                "ClientConfigurationError",
                "InsufficientPrivilegeError",
                "InvalidAuthorizationSpecificationError",  # no such role, wrong password, no pg_hba entry
                "InvalidCatalogNameError",  # no such database
                "InvalidSchemaNameError",
                "SSLCertVerificationError",
                "UndefinedColumnError",  # tables of another release, or a partial restore
                "UndefinedTableError",
            }
        ),
        "check the URL, the password and the permissions",
    ),
    CodeRow(
        "postgres",
        "the connection limit is reached",
        ErrorKind.TEMPORARY,
        frozenset({"TooManyConnectionsError"}),
        "raise max_connections of the database, or set up a pooler",
    ),
    CodeRow(
        "postgres",
        "a full disk",
        ErrorKind.TEMPORARY,
        frozenset({"DiskFullError"}),
        "free space on the database server",
    ),
    CodeRow(
        "postgres",
        "a read-only server, such as a replica or a server during a failover",
        ErrorKind.TEMPORARY,
        frozenset({"ReadOnlySQLTransactionError"}),
        "inbox_url must lead to the primary server, not to a read-only replica",
    ),
    CodeRow(
        "postgres",
        "connection lost, restart, lock, deadlock or timeout",
        ErrorKind.TEMPORARY,
        frozenset(
            {
                "IdleInTransactionSessionTimeoutError",
                "InsufficientResourcesError",  # out of memory
                "InterfaceError",  # the connection is closed
                "InternalClientError",
                "InvalidCachedStatementError",  # the tables changed under a prepared statement
                "LockNotAvailableError",
                "OperatorInterventionError",  # shut down, starting up, cancelled
                "PostgresConnectionError",
                "TransactionRollbackError",  # deadlock, serialization
            }
        ),
    ),
    CodeRow(
        "sqlite",
        "the file is no database, is damaged, or may not be written",
        ErrorKind.DEPLOYMENT,
        frozenset(
            str(code)
            for code in (
                sqlite3.SQLITE_AUTH,
                sqlite3.SQLITE_CORRUPT,
                sqlite3.SQLITE_NOTADB,
                sqlite3.SQLITE_PERM,
                sqlite3.SQLITE_READONLY,
            )
        ),
        "check the path in the URL, and the owner and mode of the file",
    ),
    CodeRow(
        "sqlite",
        "a full disk",
        ErrorKind.TEMPORARY,
        frozenset({str(sqlite3.SQLITE_FULL)}),
        "free space on the disk of the inbox's file",
    ),
    CodeRow(
        "sqlite",
        "a lock, or an error of the disk",
        ErrorKind.TEMPORARY,
        frozenset(
            str(code)
            for code in (
                sqlite3.SQLITE_BUSY,
                sqlite3.SQLITE_CANTOPEN,
                sqlite3.SQLITE_IOERR,
                sqlite3.SQLITE_LOCKED,
                sqlite3.SQLITE_NOMEM,
            )
        ),
    ),
    CodeRow(
        "google",
        "timeouts, 5xx and quotas",
        ErrorKind.TEMPORARY,
        frozenset(
            {
                "ABORTED",
                "CANCELLED",
                "DATA_LOSS",
                "DEADLINE_EXCEEDED",
                "INTERNAL",
                "RESOURCE_EXHAUSTED",
                "UNAVAILABLE",
                "UNKNOWN",
            }
        ),
    ),
    CodeRow(
        "google",
        "the metadata server or the network is unreachable",
        ErrorKind.TEMPORARY,
        frozenset({"TransportError"}),
    ),
    CodeRow(
        "aws",
        "throttling and outages with a status below 500",
        ErrorKind.TEMPORARY,
        frozenset(
            {
                "BandwidthLimitExceeded",
                "IDPCommunicationError",
                "InternalError",
                "InternalFailure",
                "KMS.ThrottlingException",
                "KmsThrottled",
                # Too many messages are in flight, that is, received but not deleted yet.
                "OverLimit",
                "PriorRequestNotComplete",
                "RequestLimitExceeded",
                "RequestThrottled",
                "RequestThrottledException",
                "RequestTimeout",
                "RequestTimeoutException",
                "ServiceUnavailable",
                "SlowDown",
                "Throttling",
                "ThrottlingException",
                "ThrottledException",
                "TooManyRequestsException",
            }
        ),
    ),
    CodeRow(
        "aws",
        "a wrong local configuration; no request was sent",
        ErrorKind.TASK,
        frozenset(
            {
                "ConfigNotFound",
                "ConfigParseError",
                "CredentialRetrievalError",
                "InvalidConfigError",
                "InvalidEndpointConfigurationError",
                "InvalidRegionError",
                "NoCredentialsError",
                "NoRegionError",
                "ParamValidationError",
                "PartialCredentialsError",
                "ProfileNotFound",
                "ProxyConnectionConfigError",
                "RefreshWithMFAUnsupportedError",
                "SSOTokenLoadError",
                "TokenRetrievalError",
                "UnauthorizedSSOTokenError",
                "UnknownCredentialError",
                "UnknownServiceError",
            }
        ),
    ),
    CodeRow(
        "kafka",
        "the cluster refuses the credentials or the mechanism",
        ErrorKind.TASK,
        frozenset(
            {
                "AuthenticationFailedError",
                "AuthenticationMethodNotSupported",
                "ClusterAuthorizationFailedError",
                "IllegalSaslStateError",
                "SaslAuthenticationFailed",
                "UnsupportedSaslMechanismError",
            }
        ),
    ),
    CodeRow(
        "kafka",
        "a timeout, a broker that is not available, or a producer that must be opened again",
        ErrorKind.TEMPORARY,
        frozenset(
            {
                "BrokerNotAvailableError",
                "ConcurrentTransactions",
                "CorruptRecordException",
                "IllegalOperation",
                "InvalidProducerIdMapping",
                "InvalidTxnState",
                # A full batch waited too long for a broker.
                "KafkaTimeoutError",
                "KafkaUnavailableError",
                "OutOfOrderSequenceNumber",
                "ProducerClosed",
                "QuotaViolationError",
                "ReplicaNotAvailableError",
                "UnknownError",
                "UnknownProducerId",
            }
        ),
    ),
    CodeRow(
        "kafka",
        "a connection that is closed during the TLS handshake",
        ErrorKind.TEMPORARY,
        frozenset({"SSLEOFError", "SSLZeroReturnError", "SSLSyscallError"}),
    ),
    CodeRow(
        "kafka",
        "a certificate that is not trusted, or no common TLS version",
        ErrorKind.TASK,
        frozenset({"SSLError"}),
    ),
    CodeRow(
        "ssh",
        "an unknown host key, a rejected login, no common algorithm",
        ErrorKind.TASK,
        frozenset(
            {
                "HostKeyNotVerifiable",
                "IllegalUserName",
                "KeyExchangeFailed",
                "PermissionDenied",
                "ProtocolNotSupported",
            }
        ),
    ),
    CodeRow(
        "http",
        "a request that may be sent again: status 408, 425 or 429",
        ErrorKind.TEMPORARY,
        frozenset({"408", "425", "429"}),
    ),
    CodeRow(
        "http",
        "a redirect, or a refusal of the request's method or body",
        ErrorKind.TASK,
        frozenset(
            {"300", "301", "302", "303", "304", "305", "307", "308"}
            | {"400", "402", "405", "406", "410", "411", "413", "414", "415", "422", "431", "451"}
        ),
    ),
)


def kind_of(error: BaseException, *, started: bool) -> ErrorKind:
    """Return the kind of an exception.

    An exception that is not in the table counts as a bug: its kind is ``ErrorKind.TASK``.

    :param started: whether the task has already launched external work or read from an external system.
    """
    row = _row_of(error)
    if row is None:
        return ErrorKind.TASK
    return row.once_started if started else row.kind


def retry_can_help(error: BaseException) -> bool:
    """Return whether a retry of a task that failed with this exception may succeed without a change by a user."""
    if isinstance(error, LaunchRefused):
        return error.retry_can_help
    # A bug, which is in no row, may be fixed before the retry.
    row = _row_of(error)
    return row is None or row.kind is not ErrorKind.TASK


def _row_of(error: BaseException) -> ErrorRow | None:
    return next((row for row in ERRORS if isinstance(error, row.exceptions)), None)


def find_code(system: str, *names: str) -> CodeRow | None:
    """Return the first row of a system that contains one of these error codes, or None.

    :param names: error codes, or the name of the exception's class and of its base classes.
    """
    for row in CODES:
        if row.system == system and not row.codes.isdisjoint(names):
            return row
    return None


def kind_of_code(system: str, *names: str, default: ErrorKind = ErrorKind.TASK) -> ErrorKind:
    """Return the kind of an error code. HTTP statuses of 500 and above are temporary.

    :param default: the kind of a code that is not in the table.
    """
    row = find_code(system, *names)
    if row is not None:
        return row.kind
    if system in ("http", "aws") and any(name.isdigit() and int(name) >= 500 for name in names):
        return ErrorKind.TEMPORARY
    return default


def class_names(error: BaseException) -> Collection[str]:
    """Return the names of an exception's class and of its base classes, for :func:`find_code`."""
    return [cls.__name__ for cls in type(error).__mro__]
