"""Channels on a running endpoint: added by the command, killed in the middle, and without the database."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from integration.endpoint.serving import served, serving

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.events.events import StoredEvent
from real_airflow import Postgres, wait_until

SENDERS, EVENTS = 6, 60


@pytest.fixture(params=["sqlite", "postgres"])
def inbox_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'inbox.db'}"
    else:
        yield request.getfixturevalue("postgres").create_database("channels", driver="asyncpg")


def channels(inbox_url: str, *arguments: str) -> str:
    """Run the command as an administrator does, and return its output."""
    environment = {**os.environ, "AIRFLOW__DEFERRABLE_OPS__INBOX_URL": inbox_url}
    command = [sys.executable, "-m", "deferrable_ops.cli", "channels", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kept(inbox_url: str, name: str) -> list[StoredEvent]:
    async def run() -> list[StoredEvent]:
        inbox = await Inbox.open(inbox_url, retry_timeout=10)
        newest = await inbox.events.newest()
        found = await inbox.events.read([f"channel:{name}"], after=0, upto=newest, limit=100_000)
        await inbox.close()
        return found

    return asyncio.run(run())


def signed(secret: str, payload: Any) -> dict[str, Any]:
    body = json.dumps(payload).encode()
    signature = hmac.digest(secret.encode(), body, hashlib.sha256).hex()
    return {"content": body, "headers": {"X-Hub-Signature-256": f"sha256={signature}"}}


def secret_in(output: str) -> str:
    found = re.search(r"not shown again: (\S+)", output)
    assert found is not None
    return found[1]


def test_a_running_endpoint_uses_new_channels_and_secrets(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'inbox.db'}"
    with serving(url, tmp_path, "--workers", "2") as (client, output):
        path = "/deferrable-ops/channels/builds"
        assert client.post(path, **signed("guessed", {"n": 0})).status_code == 404
        secret = secret_in(channels(url, "add", "builds", "--verify", "github"))
        assert client.post(path, **signed(secret, {"n": 1})).status_code == 200
        assert client.post(path, **signed("guessed", {"n": 2})).status_code == 401
        newer = secret_in(channels(url, "rotate", "builds", "--old-valid-for", "0"))
        wait_until(lambda: client.post(path, **signed(newer, {"n": 3})).status_code == 200, "the new secret")
        wait_until(lambda: _new_client(client, path, secret) == 401, "the old secret to be refused")
        channels(url, "remove", "builds")
        wait_until(lambda: client.post(path, **signed(newer, {"n": 3})).status_code == 404, "the removal")
    assert [event.payload for event in kept(url.replace("sqlite:", "sqlite+aiosqlite:"), "builds")] == [
        {"n": 1},
        {"n": 3},
    ]
    written = output.read_text()
    assert secret not in written
    assert newer not in written


def _new_client(client: httpx.Client, path: str, secret: str) -> int:
    """Send on a new connection, which another process may serve, and return the response."""
    return httpx.post(f"{client.base_url}{path}", **signed(secret, {"n": 1})).status_code


def test_acknowledged_events_are_stored_once_although_the_endpoint_is_killed(
    inbox_url: str, tmp_path: Path
) -> None:
    channels(inbox_url, "add", "many", "--verify", "none", "--allow-unauthenticated")
    acknowledged: dict[str, bytes] = {}

    def send(url: str, sender: int) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            for number in range(EVENTS):
                key = f"{sender}/{number}"
                try:
                    answer = client.post("/channels/many", json=key, headers={"Idempotency-Key": key})
                except httpx.TransportError:
                    return  # killed: this one may have been kept or not
                assert answer.status_code == 200
                assert acknowledged.setdefault(key, answer.content) == answer.content

    for is_killed in (True, False):
        with served(inbox_url, tmp_path) as endpoint, ThreadPoolExecutor(SENDERS) as senders:
            sending = [senders.submit(send, endpoint.url, sender) for sender in range(SENDERS)]
            if is_killed:
                wait_until(lambda: len(acknowledged) > EVENTS, "some events", every=0.002)
                endpoint.kill()
                assert len(acknowledged) < SENDERS * EVENTS
            for one in sending:
                one.result()
    payloads = Counter(event.payload for event in kept(inbox_url, "many"))
    assert payloads == Counter(f"{sender}/{number}" for sender in range(SENDERS) for number in range(EVENTS))
    assert set(acknowledged) == set(payloads)


def test_a_lost_database_is_503_until_it_is_back(tmp_path: Path) -> None:
    server = Postgres()
    server.start()
    try:
        url = server.create_database("channels", driver="asyncpg")
        channels(url, "add", "orders", "--verify", "none", "--allow-unauthenticated")
        with serving(url, tmp_path) as (client, _):
            assert client.post("/channels/orders", json=1).status_code == 200
            server.stop()
            for name in ("orders", "nowhere"):
                started = time.monotonic()
                away = client.post(f"/channels/{name}", json=2)
                assert (away.status_code, int(away.headers["retry-after"]) >= 2) == (503, True)
                assert time.monotonic() - started < 3
            server.start()
            wait_until(
                lambda: client.post("/channels/orders", json=2).status_code == 200,
                "an event to be taken again",
            )
        assert [event.payload for event in kept(url, "orders")] == [1, 2]
    finally:
        server.remove()
