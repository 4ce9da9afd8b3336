"""Health checks, and the responses while the inbox is down or set up wrongly."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from unit.endpoint.support import Caller

from deferrable_ops.endpoint.health import READY, Readiness
from deferrable_ops.endpoint.resources import LazyInbox, RetryAfter
from deferrable_ops.exceptions import DeploymentError, InboxUnavailable
from deferrable_ops.inbox import Inbox


async def test_health_needs_no_inbox(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", "mysql://x/y")
    for path in ("/health", "/deferrable-ops/health"):
        answer = await http.get(path)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert (await http.head("/health")).status_code == 200
    assert (await http.post("/health")).headers["allow"] == "GET, HEAD"


async def test_ready_endpoint_can_read_and_write_its_inbox(http: httpx.AsyncClient, inbox: Inbox) -> None:
    answer = await http.get("/health/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


@pytest.mark.parametrize("broken", ["read", "write"])
async def test_endpoint_whose_inbox_cannot_be_read_or_written_is_not_ready(
    http: httpx.AsyncClient, inbox: Inbox, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    async def unavailable(*_: object) -> None:
        raise InboxUnavailable("the inbox does not answer")

    monkeypatch.setattr(inbox.database, broken, unavailable)
    answer = await http.get("/health/ready")
    assert answer.status_code == 503
    assert 2 <= int(answer.headers["retry-after"]) <= 4


async def test_endpoint_whose_tables_are_too_new_is_not_ready(
    http: httpx.AsyncClient, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deferrable_ops.inbox.database.migrate.HEAD", "0001")
    monkeypatch.setattr("deferrable_ops.inbox.database.migrate.SchemaVersion.is_too_new", True)
    answer = await http.get("/health/ready")
    assert answer.status_code == 500
    assert "retry-after" not in answer.headers


async def test_readiness_is_checked_at_most_once_a_second_whatever_the_result(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, checks = [0.0], []
    results: list[Exception | None] = [None, InboxUnavailable("down"), DeploymentError("wrong"), None]

    async def check(_: Inbox) -> None:
        checks.append(now[0])
        await asyncio.sleep(0)
        if (error := results[len(checks) - 1]) is not None:
            raise error

    monkeypatch.setattr(Inbox, "check", check)
    lazy = LazyInbox()
    readiness = Readiness(lazy, clock=lambda: now[0])
    assert await asyncio.gather(*(readiness.response() for _ in range(5))) == [READY] * 5
    now[0] = 0.9
    assert await readiness.response() is READY
    for now[0], error in ((1.0, InboxUnavailable), (1.9, InboxUnavailable), (2.0, DeploymentError)):
        with pytest.raises(error):
            await readiness.response()
    now[0] = 3.0
    assert await readiness.response() is READY
    assert checks == [0.0, 1.0, 2.0, 3.0]
    await lazy.close()


def test_retry_after_grows_with_the_outage_and_has_jitter() -> None:
    now = [0.0]
    retry_after = RetryAfter(clock=lambda: now[0])

    def pauses() -> set[int]:
        return {retry_after.failed() for _ in range(300)}

    assert pauses() == {2, 3, 4}
    now[0] = 20.0
    assert pauses() == set(range(10, 21))
    now[0] = 100_000.0
    assert min(pauses()) >= 30
    assert max(pauses()) <= 60
    retry_after.succeeded()
    assert pauses() == {2, 3, 4}


async def test_retry_after_is_short_again_after_an_answer_of_the_inbox(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bool] = []
    monkeypatch.setattr(RetryAfter, "succeeded", lambda _: ended.append(True))
    await caller.http.get("/health")
    await caller.http.post("/callbacks/garbage", json={})
    assert not ended
    await caller.post("heartbeat")
    assert ended
