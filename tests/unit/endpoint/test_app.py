"""The app: it starts without an inbox, restarts its background jobs, and keeps secrets out of its responses."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from unit.endpoint.support import Caller

from deferrable_ops.endpoint import create_app
from deferrable_ops.endpoint.background import run_in_background
from deferrable_ops.endpoint.resources import LazyInbox
from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.database.database import Database


async def test_starting_needs_no_inbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for url in ("nonsense", "mysql://x/y", f"sqlite:///{tmp_path}/no/such/folder/x.db"):
        monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", url)
        app = create_app()
        async with app.router.lifespan_context(app):
            await asyncio.sleep(0)


async def test_misconfigured_inbox_is_500_that_need_not_be_repeated(
    monkeypatch: pytest.MonkeyPatch, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", "mysql://user:secret@host/db")
    token = "11111111-1111-5111-8111-111111111111.00000000." + "A" * 43
    answer = await http.post(f"/callbacks/{token}", json={})
    assert answer.status_code == 500
    assert "retry-after" not in answer.headers
    assert "an administrator must fix" in answer.json()["error"]
    assert "inbox_url" in caplog.text
    assert "secret" not in caplog.text
    assert token not in caplog.text


async def test_malformed_token_is_401_even_without_an_inbox(
    monkeypatch: pytest.MonkeyPatch, http: httpx.AsyncClient
) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", "mysql://x/y")
    assert (await http.post("/callbacks/garbage", json={})).status_code == 401


async def test_unreachable_postgres_is_503_within_two_seconds_for_everyone(
    monkeypatch: pytest.MonkeyPatch, http: httpx.AsyncClient
) -> None:
    pytest.importorskip("asyncpg")
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", "postgresql://u:secret@127.0.0.1:1/x")
    token = "11111111-1111-5111-8111-111111111111.00000000." + "A" * 43
    started = time.monotonic()
    answers = await asyncio.gather(*(http.post(f"/callbacks/{token}", json={}) for _ in range(30)))
    assert time.monotonic() - started < 4
    assert {answer.status_code for answer in answers} == {503}


async def test_app_runs_background_jobs_with_the_inbox_during_its_lifespan(inbox_url: str) -> None:
    given, ended = asyncio.Queue[Inbox](), asyncio.Event()

    async def job(inbox: Inbox) -> None:
        given.put_nowait(inbox)
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    app = create_app(background=[job])
    async with app.router.lifespan_context(app), asyncio.timeout(10):
        assert isinstance(await given.get(), Inbox)
    assert ended.is_set()


async def test_background_jobs_are_restarted_and_are_cancelled_at_the_end(
    inbox_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Inbox] = []
    ended = asyncio.Event()
    called_again = asyncio.Event()

    async def fragile(inbox: Inbox) -> None:
        calls.append(inbox)
        if len(calls) < 3:
            raise (RuntimeError("the job broke"), SystemExit(1))[len(calls) - 1]
        called_again.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with run_in_background([fragile], LazyInbox(), first_backoff=0.01), asyncio.timeout(10):
        await called_again.wait()
    assert ended.is_set()
    assert "fragile failed; retrying in" in caplog.text


async def test_lifespan_announces_the_endpoint_when_heartbeats_are_expected(
    app: FastAPI, inbox: Inbox, http: httpx.AsyncClient
) -> None:
    await Caller.of_new_wait(inbox, http, heartbeat_timeout=60.0)
    async with app.router.lifespan_context(app), asyncio.timeout(10):
        while await inbox.endpoints.up_since() is None:
            await asyncio.sleep(0.05)


async def test_unexpected_error_is_500_without_details(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("statement with parameters")

    monkeypatch.setattr(Database, "write", broken)
    answer = await caller.post(json={"password": "hunter2"})
    assert answer.status_code == 500
    assert answer.json() == {"error": "internal error; see the endpoint's log"}
    assert caller.token not in caplog.text
    assert "hunter2" not in caplog.text


async def test_openapi_describes_every_route(http: httpx.AsyncClient) -> None:
    described = (await http.get("/openapi.json")).json()
    verbs = ("", "/success", "/failure", "/skip", "/heartbeat")
    callbacks = {f"{prefix}{verb}" for prefix in ("/callbacks", "/callbacks/{token}") for verb in verbs}
    assert set(described["paths"]) == callbacks | {
        "/dag/{dag_id}/task/{task_id}/",
        "/channels/{name}",
        "/health",
        "/health/ready",
    }
    post = described["paths"]["/callbacks/{token}"]["post"]["responses"]
    assert {"200", "202", "400", "401", "404", "408", "409", "410", "413", "422", "503"} <= set(post)


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/", "/callbacks/x/y/z"])
async def test_other_paths_are_404(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 404


async def test_standalone_endpoint_serves_the_api_servers_paths_too(caller: Caller) -> None:
    assert (await caller.http.get(f"/deferrable-ops/callbacks/{caller.token}")).status_code == 200
    assert (await caller.http.get("/deferrable-ops/openapi.json")).status_code == 200


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    token=st.text(min_size=1)
    | st.from_regex(r"[0-9a-f-]{36}\.[0-9a-f]{8}\.[A-Za-z0-9_-]{43}", fullmatch=True),
    verb=st.sampled_from(["", "/success", "/failure", "/skip", "/heartbeat"]),
    body=st.binary(max_size=50),
)
async def test_malformed_tokens_are_rejected_without_the_database(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch, token: str, verb: str, body: bytes
) -> None:
    # A well-formed token needs the database, which has its key.
    assume(token.count("-") != 4 or len(token) != 89)

    async def queried(*_: object) -> None:
        raise AssertionError("the database was queried")

    monkeypatch.setattr(Database, "read", queried)
    monkeypatch.setattr(Database, "write", queried)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
        quoted = "".join(f"%{byte:02x}" for byte in token.encode("utf-8", "surrogatepass"))
        answer = await client.post(f"/callbacks/{quoted}{verb}", content=body)
    assert answer.status_code in (401, 404)  # 404: the token holds a slash


@pytest.fixture(autouse=True)
def _warnings_are_captured(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
