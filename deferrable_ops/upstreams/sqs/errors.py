"""Decides whether an SQS error is permanent or transient.

The message of a permanent error shows how to correct the problem.
"""

from __future__ import annotations

from typing import Any, Final

from deferrable_ops.error_table import ErrorKind, find_code, kind_of_code
from deferrable_ops.events.queues import Queue
from deferrable_ops.exceptions import ConfigurationError, SqsRefused
from deferrable_ops.upstreams.aws.connection import AwsSettings

_CREDENTIALS: Final = (
    "AuthFailure",
    "ExpiredToken",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "InvalidSignature",
    "MissingAuthenticationToken",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnrecognizedClient",
)
# The part of an error code after the last dot.
_ABOUT_MESSAGES: Final = frozenset(
    {
        "BatchRequestTooLong",
        "InvalidAttributeValue",
        "InvalidMessageContents",
        "InvalidParameterValue",
        "MissingParameter",
        "UnsupportedOperation",
    }
)
_MAX_CHARACTERS: Final = 300


def find_refusal(error: Exception, settings: AwsSettings, queue: Queue) -> SqsRefused | None:
    """Return an SqsRefused if the given error is permanent; return None if it is transient.

    An error is permanent if SQS refuses the call, or if a setting on this machine is wrong.
    """
    if isinstance(error, ConfigurationError):
        return SqsRefused(str(error))
    name = type(error).__name__
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return _refusal_by_server(error, response, settings, queue)
    detail = summarize(error, settings)
    if name == "NoCredentialsError":
        return SqsRefused(
            f"there are no AWS credentials for {queue.url} (searched: {settings.identity}); set the login (access key "
            f"id) and the password (secret access key) of the connection {settings.conn_id or 'aws_default'!r}, or run "
            "on a machine with an IAM role"
        )
    if find_code("aws", name) is not None:
        return SqsRefused(
            f"the AWS settings of {settings.identity} cannot be used: {detail}; check the extra of the connection"
        )
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return SqsRefused(
            f"the server's certificate of {queue.url} is not trusted: {detail}; set verify in the connection's extra "
            "to the path of a file with the certificate of the authority that signed it"
        )
    return None


def is_denied(error: Exception) -> bool:
    """Return whether SQS denied the call because a permission is missing."""
    response = getattr(error, "response", None)
    return isinstance(response, dict) and _code(response).startswith("AccessDenied")


def is_about_messages(error: Exception) -> bool:
    """Return whether SQS rejects the messages of the call, regardless of the credentials and permissions."""
    response = getattr(error, "response", None)
    return isinstance(response, dict) and _code(response).rpartition(".")[2] in _ABOUT_MESSAGES


def summarize(error: Exception, settings: AwsSettings) -> str:
    """Return the first line of the error message, without secrets.

    The other lines of the message are omitted, because they can contain the session token.
    """
    response = getattr(error, "response", None)
    text = error.__class__.__name__ if not str(error) else str(error)
    if isinstance(response, dict):
        given = response.get("Error") or {}
        text = f"{_code(response)}: {given.get('Message') or ''}".rstrip(": ")
    line = settings.without_secrets(text).strip().split("\n", 1)[0]
    return line if len(line) <= _MAX_CHARACTERS else line[:_MAX_CHARACTERS] + "..."


def _refusal_by_server(
    error: Exception, response: dict[str, Any], settings: AwsSettings, queue: Queue
) -> SqsRefused | None:
    code, status = _code(response), _status(response)
    if ErrorKind.TEMPORARY in (kind_of_code("aws", code), kind_of_code("http", str(status))):
        return None
    detail, operation = summarize(error, settings), str(getattr(error, "operation_name", ""))
    if operation.startswith("AssumeRole"):
        return SqsRefused(
            f"STS refuses the role {settings.identity}: {detail}; check role_arn, check that the role's trust policy "
            "allows sts:AssumeRole for these credentials, and set the ExternalId if the policy requires it"
        )
    if code.startswith(_CREDENTIALS):
        return SqsRefused(
            f"AWS refuses the credentials of {settings.identity} for {queue.url}: {detail}; check the login (access "
            "key id) and the password (secret access key), and check that the session token has not expired"
        )
    if "NonExistentQueue" in code or code in ("QueueDoesNotExist", "InvalidAddress"):
        return SqsRefused(
            f"there is no queue {queue.url} ({detail}); check queue_url=, its region and account, or create it first"
        )
    if code.startswith(("KMS.", "Kms")):
        return SqsRefused(
            f"the messages of {queue.url} cannot be decrypted with {settings.identity}: {detail}; grant kms:Decrypt on "
            "the queue's key"
        )
    if code.startswith("AccessDenied") or status == 403:
        return SqsRefused(
            f"{settings.identity} may not {_permission(operation)} on {queue.arn or queue.url}: {detail}; grant "
            "sqs:ReceiveMessage, sqs:DeleteMessage and sqs:GetQueueAttributes on it"
        )
    return SqsRefused(f"SQS refuses {operation} on {queue.url}: {detail}")


def _permission(operation: str) -> str:
    return f"call sqs:{operation.removesuffix('Batch')}" if operation else "use SQS"


def _code(response: dict[str, Any]) -> str:
    return str((response.get("Error") or {}).get("Code") or "")


def _status(response: dict[str, Any]) -> int:
    return int((response.get("ResponseMetadata") or {}).get("HTTPStatusCode") or 0)
