"""AWS credentials: keys, assumed roles, and their errors."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from deferrable_ops.exceptions import ConfigurationError
from deferrable_ops.upstreams.aws.connection import AwsSettings, Role
from deferrable_ops.upstreams.sqs.queues import PollerTimings, SqsPollers, open_pollers, use_sqs
from real_sqs import ACCOUNT, REGION, RealSqs, Stored

ROLE = f"arn:aws:iam::{ACCOUNT}:role/reader"
TOKEN = "FwoGZXIvYXdzEXAMPLETOKEN"


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove the machine's credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)


@asynccontextmanager
async def opened(settings: AwsSettings) -> AsyncIterator[SqsPollers]:
    # A refusal is permanent after three attempts, without a minimum time.
    sqs = await open_pollers(settings, timings=PollerTimings(refused_after=0.0))
    try:
        yield sqs
    finally:
        await sqs.close()


async def one_message(server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str) -> None:
    await asyncio.to_thread(server.send, queue, "hello")
    with stored.subscribed(sqs, queue):
        await stored.until(lambda: stored.events or stored.failures, "a message")
    assert stored.payloads == ["hello"], stored.failures


async def why_refused(sqs: SqsPollers, stored: Stored, queue: str) -> str:
    with stored.subscribed(sqs, queue):
        await stored.until(lambda: stored.failures, "a failure")
    return stored.failures[0]


def signed_with(server: RealSqs, queue: str) -> set[str]:
    """Return the ids of the keys that signed the requests for a queue."""
    calls = [call for call in server.proxy.calls if queue in str(call.request)]
    return {call.authorization.partition("Credential=")[2].partition("/")[0] for call in calls}


async def test_role_is_assumed_with_the_external_id(server: RealSqs, stored: Stored, queue: str) -> None:
    before = server.proxy.count("AssumeRole")
    role = Role(ROLE, {"ExternalId": "airflow-7", "DurationSeconds": 3600})
    async with opened(server.settings(role=role)) as sqs:
        await one_message(server, sqs, stored, queue)
    (request,) = [parse_qs(call.request) for call in server.proxy.calls_of("AssumeRole")[before:]]
    assert request["RoleArn"] == [ROLE]
    assert request["ExternalId"] == ["airflow-7"]
    assert request["RoleSessionName"] == ["deferrable-ops_aws_tests"]
    keys = signed_with(server, queue)
    assert keys
    assert all(key.startswith("ASIA") for key in keys), keys


async def test_credentials_of_a_role_are_refreshed(server: RealSqs, stored: Stored, queue: str) -> None:
    # botocore refreshes them from 15 minutes before they expire.
    before = server.proxy.count("AssumeRole")
    async with opened(server.settings(role=Role(ROLE, {"DurationSeconds": 900}))) as sqs:
        with stored.subscribed(sqs, queue):
            for count in (1, 2, 3):
                await asyncio.to_thread(server.send, queue, {"n": count})
                await stored.until_count(count)
    assert server.proxy.count("AssumeRole") - before >= 3
    assert len(signed_with(server, queue)) >= 3


async def test_denied_role_fails_the_wait(server: RealSqs, stored: Stored, queue: str) -> None:
    server.proxy.fail("AssumeRole", 403, "AccessDenied")
    async with opened(server.settings(role=Role(ROLE, {"ExternalId": "airflow-7"}))) as sqs:
        reason = await why_refused(sqs, stored, queue)
    assert f"STS refuses the role {ROLE} (assumed by the connection 'aws_tests')" in reason
    assert "sts:AssumeRole" in reason
    assert "airflow-7" not in reason


async def test_unavailable_sts_does_not_fail_a_wait(server: RealSqs, stored: Stored, queue: str) -> None:
    before = server.proxy.count("AssumeRole")
    away = server.proxy.fail("AssumeRole", 503, "ServiceUnavailable")
    async with opened(server.settings(role=Role(ROLE))) as sqs:
        with stored.subscribed(sqs, queue):
            await stored.until(lambda: server.proxy.count("AssumeRole") >= before + 4, "four tries")
            assert not stored.failures
        server.proxy.heal(away)
        await one_message(server, sqs, stored, queue)


async def test_web_identity_role_is_assumed_with_the_token_file(
    server: RealSqs, stored: Stored, queue: str, tmp_path: Path
) -> None:
    before = server.proxy.count("AssumeRoleWithWebIdentity")
    file = tmp_path / "token"
    file.write_text("eyJhbGciOi.of.kubernetes")
    settings = server.settings(access_key=None, secret_key=None, role=Role(ROLE, token_file=str(file)))
    async with opened(settings) as sqs:
        await one_message(server, sqs, stored, queue)
    calls = server.proxy.calls_of("AssumeRoleWithWebIdentity")[before:]
    assert parse_qs(calls[0].request)["WebIdentityToken"] == ["eyJhbGciOi.of.kubernetes"]
    assert not calls[0].authorization, "signed without credentials"


async def test_unreadable_token_file_fails_the_wait(
    server: RealSqs, stored: Stored, queue: str, tmp_path: Path
) -> None:
    missing = str(tmp_path / "nothing")
    async with opened(server.settings(role=Role(ROLE, token_file=missing))) as sqs:
        assert missing in await why_refused(sqs, stored, queue)


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "InvalidClientTokenId"), (403, "SignatureDoesNotMatch"), (400, "UnrecognizedClientException")],
)
async def test_refused_credentials_are_reported_without_secrets(
    server: RealSqs, stored: Stored, queue: str, status: int, code: str
) -> None:
    # AWS's message for a wrong signature contains everything that was signed.
    message = (
        f"It is not right, {server.secret_key}.\n\nThe Canonical String was\nx-amz-security-token:{TOKEN}"
    )
    server.proxy.fail("*", status, code, message=message)
    async with opened(server.settings(session_token=TOKEN)) as sqs:
        reason = await why_refused(sqs, stored, queue)
    assert "AWS refuses the credentials of the connection 'aws_tests'" in reason
    assert f"{code}: It is not right, ***." in reason
    assert TOKEN not in reason


async def test_missing_credentials_fail_the_wait(server: RealSqs, stored: Stored, queue: str) -> None:
    async with opened(AwsSettings()) as sqs:
        assert "there are no AWS credentials" in await why_refused(sqs, stored, queue)


async def test_credentials_of_the_machine_are_used(
    server: RealSqs, stored: Stored, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOFTHEMACHINE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the machine")
    # The region comes from the queue's URL.
    async with opened(AwsSettings()) as sqs:
        await one_message(server, sqs, stored, queue)
    assert signed_with(server, queue) == {"AKIAOFTHEMACHINE"}


async def test_credentials_of_a_profile_are_used(
    server: RealSqs, stored: Stored, queue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOTTHISONE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    keys = "[reader]\naws_access_key_id = AKIAOFTHEPROFILE\naws_secret_access_key = of the profile\n"
    (tmp_path / "credentials").write_text(keys)
    async with opened(AwsSettings(profile="reader")) as sqs:
        await one_message(server, sqs, stored, queue)
    assert signed_with(server, queue) == {"AKIAOFTHEPROFILE"}
    with pytest.raises(ConfigurationError, match="profile"):
        await open_pollers(AwsSettings(conn_id="aws", profile="absent"))


async def test_logs_contain_no_secret(
    server: RealSqs, stored: Stored, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = len(server.proxy.calls)
    with caplog.at_level(logging.DEBUG):
        for role in (None, Role(ROLE, {"ExternalId": "airflow-7"})):
            async with opened(server.settings(session_token=TOKEN, role=role)) as sqs:
                await asyncio.to_thread(server.send, queue, {"role": str(role)})
                with stored.subscribed(sqs, queue):
                    await stored.until_count(1 if role is None else 2)
    answers = [str(call.answer) for call in server.proxy.calls[before:] if call.action == "AssumeRole"]
    (temporary,) = [text.partition("<SecretAccessKey>")[2].partition("<")[0] for text in answers]
    assert len(temporary) > 20
    ours = [record for record in caplog.records if record.threadName == "deferrable-ops sqs"]
    shown = "\n".join(f"{record.getMessage()} {record.exc_text}" for record in ours)
    for secret in (server.secret_key, TOKEN, temporary, "airflow-7"):
        assert secret not in shown


@pytest.mark.parametrize(
    ("conn_id", "extra", "expected"),
    [
        ("aws_default", {}, ""),
        ("payments", {"role_arn": ROLE, "assume_role_kwargs": {"ExternalId": "airflow-7"}}, "ASIA"),
        (
            "payments",
            {"service_config": {"sqs": {"endpoint_url": "OURS"}}, "endpoint_url": "http://127.0.0.1:1"},
            "",
        ),
    ],
)
async def test_airflow_connection_is_read(
    server: RealSqs,
    stored: Stored,
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
    conn_id: str,
    extra: dict[str, Any],
    expected: str,
) -> None:
    settings = json.loads(json.dumps(extra).replace("OURS", server.url))
    settings.setdefault("service_config", {})["sts"] = {"endpoint_url": server.url}
    for name, value in server.connection(conn_id, **settings).items():
        monkeypatch.setenv(name, value)
    async with use_sqs(conn_id) as sqs:
        await one_message(server, sqs, stored, queue)
    assert all(key.startswith(expected or server.access_key) for key in signed_with(server, queue))


async def test_missing_connection_is_an_error_except_for_the_default(
    server: RealSqs, stored: Stored, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOFTHEMACHINE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the machine")
    with pytest.raises(ConfigurationError, match="there is no connection 'aws_payments'"):
        async with use_sqs("aws_payments"):
            pass
    for count, conn_id in enumerate(["aws_default", None], 1):
        async with use_sqs(conn_id) as sqs:
            await asyncio.to_thread(server.send, queue, {"n": count})
            with stored.subscribed(sqs, queue):
                await stored.until_count(count)
    assert signed_with(server, queue) == {"AKIAOFTHEMACHINE"}


async def test_invalid_json_in_the_extra_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"conn_type": "aws", "extra": "region_name=eu-west-1"}
    monkeypatch.setenv("AIRFLOW_CONN_PAYMENTS", json.dumps(value))
    with pytest.raises(ConfigurationError, match="is not JSON"):
        async with use_sqs("payments"):
            pass
