"""Permanent refusals of SQS, and transient errors."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ReadTimeoutError,
    SSLError,
)

from deferrable_ops.events.queues import queue_of
from deferrable_ops.exceptions import ConfigurationError, LaunchRefused, SqsRefused
from deferrable_ops.upstreams.aws.connection import AwsSettings, Role
from deferrable_ops.upstreams.sqs.errors import find_refusal, is_denied, summarize
from deferrable_ops.upstreams.sqs.sender import Sender, SqsUnavailable

URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/payments"
SETTINGS = AwsSettings(conn_id="aws", access_key="key", secret_key="hush-hush")


def error(code: str, status: int, message: str = "", operation: str = "ReceiveMessage") -> ClientError:
    answer: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(answer, operation)


def refusal(raised: Exception, settings: AwsSettings = SETTINGS) -> str | None:
    refused = find_refusal(raised, settings, queue_of(URL))
    return None if refused is None else str(refused)


@pytest.mark.parametrize(
    "raised",
    [
        error("Throttling", 400),
        error("ThrottlingException", 400),
        error("RequestThrottled", 403),
        error("OverLimit", 403),
        error("KmsThrottled", 400),
        error("AnythingAtAll", 500),
        error("AccessDenied", 503),
        error("AnythingAtAll", 429),
        EndpointConnectionError(endpoint_url=URL),
        ConnectionClosedError(endpoint_url=URL),
        ReadTimeoutError(endpoint_url=URL),
        OSError("no route"),
        TimeoutError(),
    ],
)
def test_transient_errors_are_not_refusals(raised: Exception) -> None:
    assert refusal(raised) is None


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (
            error("AccessDenied", 403),
            "may not call sqs:ReceiveMessage on arn:aws:sqs:eu-west-1:123456789012:payments",
        ),
        (
            error("AccessDeniedException", 400, operation="DeleteMessageBatch"),
            "may not call sqs:DeleteMessage on",
        ),
        (error("AWS.SimpleQueueService.NonExistentQueue", 400), f"there is no queue {URL}"),
        (error("QueueDoesNotExist", 400), f"there is no queue {URL}"),
        (error("InvalidAddress", 404), f"there is no queue {URL}"),
        (error("KMS.AccessDeniedException", 400), "kms:Decrypt"),
        (error("KmsDisabled", 400), "kms:Decrypt"),
        (error("InvalidClientTokenId", 403), "refuses the credentials of the connection 'aws'"),
        (error("SignatureDoesNotMatch", 403), "refuses the credentials of the connection 'aws'"),
        (error("ExpiredTokenException", 403), "session token has not expired"),
        (error("InvalidParameterValue", 400, "WaitTimeSeconds"), "WaitTimeSeconds"),
        (NoCredentialsError(), "there are no AWS credentials"),
        (NoRegionError(), "region"),
        (SSLError(endpoint_url=URL, error="[SSL: CERTIFICATE_VERIFY_FAILED] self signed"), "set verify"),
        (ConfigurationError("the token cannot be read"), "the token cannot be read"),
    ],
)
def test_refusal_names_the_fix(raised: Exception, message: str) -> None:
    assert message in str(refusal(raised))


def test_role_refused_by_sts_is_named() -> None:
    settings = AwsSettings(conn_id="aws", role=Role("arn:aws:iam::1:role/reader"))
    message = str(refusal(error("AccessDenied", 403, operation="AssumeRole"), settings))
    assert "arn:aws:iam::1:role/reader (assumed by the connection 'aws')" in message
    assert "trust policy" in message


def test_summary_is_one_line_without_secrets() -> None:
    message = summarize(error("SignatureDoesNotMatch", 403, "wrong: hush-hush\nsigned: FwoGZX\n"), SETTINGS)
    assert message == "SignatureDoesNotMatch: wrong: ***"
    assert len(summarize(error("X", 400, "x" * 5_000), SETTINGS)) < 400
    assert summarize(TimeoutError(), SETTINGS) == "TimeoutError"


def test_only_missing_permissions_are_denied() -> None:
    assert is_denied(error("AccessDenied", 403))
    assert is_denied(error("AccessDeniedException", 400))
    assert not is_denied(error("Throttling", 400))
    assert not is_denied(OSError())


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("InvalidMessageContents", 400, LaunchRefused),
        ("AWS.SimpleQueueService.BatchRequestTooLong", 400, LaunchRefused),
        ("ExpiredToken", 403, SqsRefused),
        ("AccessDenied", 403, SqsRefused),
        ("AWS.SimpleQueueService.NonExistentQueue", 400, SqsRefused),
        ("ServiceUnavailable", 503, SqsUnavailable),
    ],
)
def test_rejected_message_is_a_refused_launch_and_a_refused_login_is_not(
    code: str, status: int, kind: type[Exception]
) -> None:
    raised = error(code, status, operation="SendMessageBatch")
    assert type(Sender(SETTINGS)._translate(raised, queue_of(URL))) is kind
