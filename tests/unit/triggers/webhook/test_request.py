"""Requests: placeholders, connections, retries, and keeping secrets out of logs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from deferrable_ops.testing import outside_service
from deferrable_ops.triggers.webhook.launch import LaunchFailed, LaunchRequest
from deferrable_ops.triggers.webhook.request import RequestTemplate
from deferrable_ops.upstreams.http import HttpRequest

FILLING = {
    "endpoint": "https://airflow.example.com/deferrable-ops",
    "token": "wait.key.signature",
    "wait_id": "wait",
}
CALLBACK_URL = "https://airflow.example.com/deferrable-ops/callbacks/wait.key.signature"


async def test_placeholders_are_replaced_anywhere() -> None:
    template = RequestTemplate(
        url="https://jobs.example.com/${wait_id}?notify=${callback_url}",
        headers={"X-Token": "${callback_token}"},
        json={"nested": [{"${wait_id}": "see ${callback_url}"}], "count": 3},
    )
    request = await template.fill(**FILLING)
    assert request.url == f"https://jobs.example.com/wait?notify={CALLBACK_URL}"
    assert request.headers == {"X-Token": "wait.key.signature", "Idempotency-Key": "wait"}
    assert request.json == {"nested": [{"wait": f"see {CALLBACK_URL}"}], "count": 3}


async def test_without_a_placeholder_a_header_contains_the_url() -> None:
    request = await RequestTemplate(url="https://jobs.example.com", json={"a": 1}).fill(**FILLING)
    assert request.headers["Callback-Url"] == CALLBACK_URL


async def test_connection_provides_host_login_and_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_JOBS",
        '{"conn_type": "http", "host": "jobs.example.com", "port": 8443, "login": "me", "password": "hunter2", '
        '"schema": "https", "extra": {"headers": {"X-Team": "ml"}}}',
    )
    request = await RequestTemplate(http_conn_id="jobs", path="/train").fill(**FILLING)
    assert request.url == "https://jobs.example.com:8443/train"
    assert request.auth == ("me", "hunter2")
    assert request.headers["X-Team"] == "ml"


@asynccontextmanager
async def raw_service(status: bytes, rest: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Run a service that sends these bytes to each request, and closes the connection."""
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 " + status + b"\r\nConnection: close\r\n" + rest)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests


async def nothing() -> None:
    """Allow the request."""


def launch(url: str, **arguments: Any) -> LaunchRequest:
    request = HttpRequest("POST", url, {"Authorization": "Bearer hunter2"}, **arguments)
    return LaunchRequest(request, "wait.key.signature", logging.getLogger("test"))


async def test_server_errors_are_retried_and_client_errors_are_not() -> None:
    async with outside_service() as service:
        service.answers = [(503, {}), (429, {}), (202, {"id": 7})]
        answer = await launch(service.url).send_with_retries(nothing, timeout=30)
        assert (answer.status, len(service.requests)) == (202, 3)

        service.answers = [(404, {"error": "no such job"})]
        with pytest.raises(LaunchFailed, match=r"answered with HTTP status 404: .*no such job"):
            await launch(service.url).send_with_retries(nothing, timeout=30)
        assert len(service.requests) == 4


async def test_retry_after_zero_still_waits() -> None:
    async with raw_service(b"503 No", b"Retry-After: 0\r\nContent-Length: 0\r\n\r\n") as (url, requests):
        with pytest.raises(LaunchFailed, match="503"):
            await launch(url).send_with_retries(nothing, timeout=1.5)
    assert len(requests) == 2


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Type: text/plain; charset=bogus\r\nContent-Length: 2\r\n\r\nok",
        b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok",
        b"Content-Length: 1000\r\n\r\nok",
    ],
    ids=["unknown encoding", "not compressed", "broken off"],
)
async def test_launch_is_accepted_with_any_response_body(rest: bytes) -> None:
    async with raw_service(b"202 Accepted", rest) as (url, requests):
        assert (await launch(url).send_with_retries(nothing, timeout=5)).status == 202
    assert len(requests) == 1


async def test_invalid_url_fails_at_once_and_is_not_shown() -> None:
    with pytest.raises(LaunchFailed, match="the URL is not valid") as caught:
        await launch("https://jobs.example.com:99999/?key=in-the-query").send_with_retries(
            nothing, timeout=30
        )
    assert "in-the-query" not in str(caught.value)


async def test_redirect_is_not_followed() -> None:
    async with outside_service() as service:
        service.answers = [(302, {})]
        with pytest.raises(LaunchFailed, match="answered with HTTP status 302"):
            await launch(service.url).send_with_retries(nothing, timeout=30)


async def test_unreachable_service_fails_after_the_timeout() -> None:
    started = time.monotonic()
    with pytest.raises(LaunchFailed, match="launch_timeout"):
        await launch("http://127.0.0.1:9").send_with_retries(nothing, timeout=2)
    assert time.monotonic() - started < 10


async def test_failed_check_sends_nothing() -> None:
    class Refused(Exception): ...

    async def refuse() -> None:
        raise Refused

    async with outside_service() as service:
        with pytest.raises(Refused):
            await launch(service.url).send_with_retries(refuse, timeout=5)
        assert service.requests == []


async def test_check_runs_on_a_reused_connection_too() -> None:
    checks = 0

    async def count() -> None:
        nonlocal checks
        checks += 1

    from deferrable_ops.upstreams.http import shared_session

    async with outside_service() as service, shared_session():
        for _ in range(2):
            await launch(service.url).send_with_retries(count, timeout=5)
    assert checks == 2


async def test_secrets_echoed_by_the_service_are_redacted() -> None:
    async with outside_service() as service:
        echo = {"you_sent": {"token": "wait.key.signature", "authorization": "Bearer hunter2"}}
        service.answers = [(400, echo)]
        with pytest.raises(LaunchFailed) as caught:
            await launch(f"{service.url}/a?key=in-the-query").send_with_retries(nothing, timeout=5)
    assert "signature" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "in-the-query" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "may_pass"),
    [(503, True), (500, True), (429, True), (401, True), (403, True), (400, False), (405, False)],
)
async def test_refused_cancel_request_is_final_only_if_a_repetition_gets_the_same_answer(
    status: int, may_pass: bool
) -> None:
    async with outside_service() as service:
        service.answers = [(status, {})]
        with pytest.raises(LaunchFailed, match=f"answered with HTTP status {status}") as caught:
            await launch(service.url).send_once()
    assert caught.value.retry_can_help is may_pass
