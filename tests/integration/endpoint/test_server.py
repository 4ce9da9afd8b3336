"""The endpoint as a process, standalone and in Airflow's API server: its logs, and without its database."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from integration.endpoint.serving import serving

from deferrable_ops.endpoint import create_app
from deferrable_ops.inbox import Attempt, Inbox, NewWait, Wait
from real_airflow import Postgres, RealAirflow, sqlite_database, wait_until
from real_airflow.environment import write_passwords


def register(inbox_url: str) -> tuple[Wait, str]:
    """Register a wait as a triggerer would, and return it with its token."""

    async def run() -> tuple[Wait, str]:
        inbox = await Inbox.open(_with_driver(inbox_url), retry_timeout=10)
        attempt = Attempt(str(uuid4()), 1, "sales", uuid4().hex, "train", logical_date=0.0)
        wait = await inbox.waits.register(NewWait(attempt, "webhook", 3600.0))
        token = await inbox.keys.token(wait.id, wait.key_id)
        await inbox.close()
        return wait, token

    return asyncio.run(run())


def _with_driver(url: str) -> str:
    return url.replace("sqlite:", "sqlite+aiosqlite:")


def call_in_every_way(client: httpx.Client, prefix: str, token: str) -> list[int]:
    """Send a token to every route that accepts one, and to some that do not."""
    bearer = {"Authorization": f"Bearer {token}"}
    requests: list[dict[str, Any]] = [
        {"method": "POST", "url": f"/callbacks/{token}/heartbeat", "json": {}},
        {"method": "GET", "url": f"/callbacks/{token}"},
        {"method": "POST", "url": f"/callbacks/{token}/mistyped", "json": {}},
        {"method": "POST", "url": f"/callbacks/{token}", "content": b"{"},
        {"method": "DELETE", "url": f"/callbacks/{token}"},
        {"method": "GET", "url": f"/mistyped/{token}?again={token}"},
        {"method": "POST", "url": "/callbacks/heartbeat", "json": {}, "headers": bearer},
        {"method": "PATCH", "url": "/dag/sales/task/train/?state=success", "headers": bearer},
        {"method": "POST", "url": f"/callbacks/{token}/success", "json": {"rows": 3}},
    ]
    return [client.request(**{**request, "url": prefix + request["url"]}).status_code for request in requests]


EXPECTED = [200, 200, 404, 400, 405, 404, 200, 400, 200]


@pytest.mark.parametrize("prefix", ["", "/deferrable-ops"])
def test_serve_accepts_callbacks_and_logs_no_token(tmp_path: Path, prefix: str) -> None:
    url = f"sqlite:///{tmp_path / 'inbox.db'}"
    wait, token = register(url)
    with serving(url, tmp_path) as (client, output):
        assert call_in_every_way(client, prefix, token) == EXPECTED
    written = output.read_text()
    assert f'POST {prefix}/callbacks/{wait.id}.masked/success HTTP/1.1" 200 wait={wait.id}' in written
    assert "The inbox is sqlite at" in written
    assert token not in written
    assert token.rpartition(".")[2] not in written


def test_serve_with_several_processes_shares_one_inbox(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'inbox.db'}"
    signatures = []
    with serving(url, tmp_path, "--workers", "2") as (client, output):
        for _ in range(20):
            _, token = register(url)
            signatures.append(token.rpartition(".")[2])
            with httpx.Client(
                base_url=client.base_url
            ) as fresh:  # a new connection, so perhaps another process
                assert fresh.post(f"/callbacks/{token}", json={}).status_code == 200
                assert fresh.post(f"/callbacks/{token}", json={}).status_code == 200
                assert fresh.post(f"/callbacks/{token}", json=1).status_code == 409
    written = output.read_text()
    assert written.count('.masked HTTP/1.1"') == 60  # each process logs its requests, without their tokens
    assert not any(signature in written for signature in signatures)


def test_serve_logs_json(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'inbox.db'}"
    with serving(url, tmp_path, "--log-format", "json") as (client, output):
        assert client.get("/health").status_code == 200
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    (health,) = [line for line in lines if line.get("path") == "/health"]
    assert (health["status"], health["client"].partition(":")[0]) == (200, "127.0.0.1")


def test_lost_postgres_is_503_until_it_is_back(tmp_path: Path) -> None:
    server = Postgres()
    server.start()
    try:
        url = server.create_database("endpoint", driver="asyncpg")
        _, token = register(url)
        with serving(url, tmp_path) as (client, output):
            assert client.post(f"/callbacks/{token}/heartbeat", json={}).status_code == 200
            server.stop()
            for _ in range(3):
                started = time.monotonic()
                away = client.post(f"/callbacks/{token}/success", json={})
                assert (away.status_code, int(away.headers["retry-after"]) >= 2) == (503, True)
                assert time.monotonic() - started < 3
            assert client.post("/callbacks/garbage", json={}).status_code == 401
            server.start()
            wait_until(
                lambda: client.post(f"/callbacks/{token}/success", json={}).status_code == 200,
                "a callback to be taken again",
            )
        assert token.rpartition(".")[2] not in output.read_text()
    finally:
        server.remove()


async def test_postgres_that_never_answers_is_503_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", f"postgresql://u@127.0.0.1:{port}/x")
    token = "11111111-1111-5111-8111-111111111111.00000000." + "A" * 43
    transport = httpx.ASGITransport(create_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
        started = time.monotonic()
        answers = await asyncio.gather(*(client.post(f"/callbacks/{token}", json={}) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {503}
    assert time.monotonic() - started < 4
    silent.close()


async def test_postgres_that_stops_answering_is_503_within_seconds(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.create_database("endpoint", driver="asyncpg")
    _, token = await asyncio.to_thread(register, url)
    async with Gate(postgres.port) as gate:
        through_gate = url.replace(f":{postgres.port}/", f":{gate.port}/")
        monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", through_gate)
        transport = httpx.ASGITransport(create_app())
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            assert (await client.post(f"/callbacks/{token}/heartbeat", json={})).status_code == 200
            gate.opened.clear()
            started = time.monotonic()
            answers = await asyncio.gather(
                *(client.post(f"/callbacks/{token}", json=number) for number in range(20))
            )
            assert {answer.status_code for answer in answers} == {503}
            assert time.monotonic() - started < 6  # of which SQLAlchemy takes 2 s to close the connection
            gate.opened.set()
            assert (await client.post(f"/callbacks/{token}", json="now")).status_code in (200, 409)


class Gate:
    """A proxy to Postgres that can drop all traffic while its connections stay open."""

    def __init__(self, to: int) -> None:
        self._to = to
        self.opened = asyncio.Event()

    async def __aenter__(self) -> Gate:
        self.opened.set()
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        with suppress(asyncio.CancelledError):  # the test is over
            await asyncio.gather(self._pass(reader, back), self._pass(there, writer), return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self.opened.wait()
            writer.write(data)
            await writer.drain()
        writer.close()


def test_api_server_accepts_callbacks_and_logs_no_token(tmp_path: Path) -> None:
    airflow = RealAirflow(tmp_path, sqlite_database(tmp_path), [])
    write_passwords(tmp_path)
    airflow.run_command("db", "migrate")
    # Before the API server, which makes its Airflow the inbox's owner.
    wait, token = register(f"sqlite:///{tmp_path / 'deferrable_ops.db'}")
    airflow.start_component(airflow.api_server)
    try:
        with httpx.Client(base_url=airflow.url, timeout=30) as client:
            statuses = call_in_every_way(client, "/deferrable-ops", token)
            assert statuses == EXPECTED
            assert client.get("/deferrable-ops/docs").status_code == 404
        airflow.api_server.stop()
        written = "".join(path.read_text(errors="replace") for path in airflow.written_files())
        assert f"/deferrable-ops/callbacks/{wait.id}.masked/success" in written
        assert token.rpartition(".")[2] not in written
        assert "Traceback" not in written
    finally:
        airflow.stop()


def test_api_server_starts_with_an_unusable_inbox(tmp_path: Path) -> None:
    unusable = {"AIRFLOW__DEFERRABLE_OPS__INBOX_URL": "mysql://user:hunter2@nowhere/x"}
    airflow = RealAirflow(tmp_path, sqlite_database(tmp_path), [], unusable)
    write_passwords(tmp_path)
    airflow.run_command("db", "migrate")
    airflow.start_component(airflow.api_server)
    try:
        with httpx.Client(base_url=airflow.url, timeout=30) as client:
            token = "11111111-1111-5111-8111-111111111111.00000000." + "A" * 43
            assert client.post(f"/deferrable-ops/callbacks/{token}", json={}).status_code == 500
            assert client.get("/api/v2/monitor/health").status_code == 200
        written = "".join(path.read_text(errors="replace") for path in airflow.written_files())
        assert "inbox_url" in written
        assert "hunter2" not in written
    finally:
        airflow.stop()
