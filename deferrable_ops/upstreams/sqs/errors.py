"""What SQS says no to, in words that name the fix; and what is only trouble, which passes."""

from __future__ import annotations

from typing import Any, Final

from deferrable_ops.events.queues import Queue
from deferrable_ops.exceptions import ConfigurationError, SqsRefused
from deferrable_ops.upstreams.aws.connection import AwsSettings

# With a status below 500, and yet nothing that anybody could fix.
_TRANSIENT: Final = frozenset(
    {
        "BandwidthLimitExceeded",
        "IDPCommunicationError",
        "InternalError",
        "InternalFailure",
        "KMS.ThrottlingException",
        "KmsThrottled",
        "OverLimit",  # too many messages that were received and not deleted
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
)
# Botocore's own errors of which a person must hear, because nothing has been sent.
_LOCAL: Final = frozenset(
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
)
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
_MAX_CHARACTERS: Final = 300


def find_refusal(error: Exception, settings: AwsSettings, queue: Queue) -> SqsRefused | None:
    """Return why SQS, or our own configuration, refuses; None: it is trouble that passes."""
    if isinstance(error, ConfigurationError):
        return SqsRefused(str(error))
    name = type(error).__name__
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return _refusal_by_server(error, response, settings, queue)
    said = summarize(error, settings)
    if name == "NoCredentialsError":
        return SqsRefused(
            f"there are no AWS credentials for {queue.url}: {settings.identity} say none; give the connection "
            f"{settings.conn_id or 'aws_default'!r} a login (the access key's id) and a password (the secret access "
            "key), or run on a machine with a role"
        )
    if name in _LOCAL:
        return SqsRefused(f"the AWS settings of {settings.identity} cannot be used: {said}")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return SqsRefused(
            f"the certificate of the server of {queue.url} cannot be trusted: {said}; set verify in the connection's "
            "extra to a file with the authority that signed it"
        )
    return None


def is_denied(error: Exception) -> bool:
    """Return whether what was asked for is not permitted."""
    response = getattr(error, "response", None)
    return isinstance(response, dict) and _code(response).startswith("AccessDenied")


def summarize(error: Exception, settings: AwsSettings) -> str:
    """Return what an error says, without secrets.

    The first line only: of a wrong signature, AWS sends back all that was signed, session token included.
    """
    response = getattr(error, "response", None)
    said = error.__class__.__name__ if not str(error) else str(error)
    if isinstance(response, dict):
        given = response.get("Error") or {}
        said = f"{_code(response)}: {given.get('Message') or ''}".rstrip(": ")
    line = settings.without_secrets(said).strip().split("\n", 1)[0]
    return line if len(line) <= _MAX_CHARACTERS else line[:_MAX_CHARACTERS] + "..."


def _refusal_by_server(
    error: Exception, response: dict[str, Any], settings: AwsSettings, queue: Queue
) -> SqsRefused | None:
    code, status = _code(response), _status(response)
    if code in _TRANSIENT or status >= 500 or status in (408, 429):
        return None
    said, operation = summarize(error, settings), str(getattr(error, "operation_name", ""))
    if operation.startswith("AssumeRole"):
        return SqsRefused(
            f"STS does not give us {settings.identity}: {said}; check role_arn, and that the role's trust policy lets "
            "those credentials assume it (sts:AssumeRole, with the ExternalId that it asks for)"
        )
    if code.startswith(_CREDENTIALS):
        return SqsRefused(
            f"AWS refuses the credentials of {settings.identity} for {queue.url}: {said}; check the login (the access "
            "key's id) and the password (the secret access key), and that a session token has not expired"
        )
    if "NonExistentQueue" in code or code in ("QueueDoesNotExist", "InvalidAddress"):
        return SqsRefused(
            f"there is no queue {queue.url} ({said}); check queue_url=, its region and its account, or create it first"
        )
    if code.startswith(("KMS.", "Kms")):
        return SqsRefused(
            f"the messages of {queue.url} cannot be decrypted for {settings.identity}: {said}; grant kms:Decrypt on the "
            "queue's key"
        )
    if code.startswith("AccessDenied") or status == 403:
        return SqsRefused(
            f"{settings.identity} may not {_permission(operation)} on {queue.arn or queue.url}: {said}; grant "
            "sqs:ReceiveMessage, sqs:DeleteMessage and sqs:GetQueueAttributes on it"
        )
    return SqsRefused(f"SQS refuses {operation} on {queue.url}: {said}")


def _permission(operation: str) -> str:
    return f"sqs:{operation.removesuffix('Batch')}" if operation else "use SQS"


def _code(response: dict[str, Any]) -> str:
    return str((response.get("Error") or {}).get("Code") or "")


def _status(response: dict[str, Any]) -> int:
    return int((response.get("ResponseMetadata") or {}).get("HTTPStatusCode") or 0)
