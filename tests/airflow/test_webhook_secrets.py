"""No log of Airflow contains a callback token, a password, or a header of a connection."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode

import httpx

from deferrable_ops.inbox import Inbox
from real_airflow import Answer, OutsideService, RealAirflow, ReceivedRequest, Run, wait_until

LOGIN = "jobs"
PASSWORD = "swordfish-4711"
HEADER = "jellyfish-0815"
REFUSED = Answer(status=503, headers={"Retry-After": "1"})


def test_no_log_contains_a_secret_although_the_service_echoes_them(
    airflow: RealAirflow, outside: OutsideService
) -> None:
    connect(airflow, outside)

    ended, request = launch_at_second_try(airflow, outside, status=200)
    use_token_in_every_way(request)
    assert outside.call_back(request, {"done": True}).status_code == 200
    ended.wait_for("success")

    failed, _ = launch_at_second_try(airflow, outside, status=400)
    failed.wait_for("failed")
    assert "answered with HTTP status 400" in failed.task("job").log()

    killed, request = launch_at_second_try(airflow, outside, status=200)
    token = request.headers["x-token"]
    outside.script(f"/cancel/{token}", echo(request, status=500))
    killed.task("job").wait_for("deferred").mark("failed")
    wait_until(
        lambda: "Could not cancel the external work" in everything_written(airflow),
        "the cancelling request to fail",
    )

    written = everything_written(airflow)
    assert "Launched the work: POST" in written
    assert ".masked/heartbeat" in written  # the access log is among it
    basic = b64encode(f"{LOGIN}:{PASSWORD}".encode()).decode()
    secrets = [PASSWORD, HEADER, basic, *asyncio.run(signatures(airflow))]
    assert token.rpartition(".")[2] in secrets
    leaked = {secret: excerpt(written, secret) for secret in secrets if secret in written}
    assert not leaked


def connect(airflow: RealAirflow, outside: OutsideService) -> None:
    """Create the connection that the DAG uses."""
    airflow.client.post(
        "/connections",
        {
            "connection_id": "jobs_with_secrets",
            "conn_type": "http",
            "host": "127.0.0.1",
            "schema": "http",
            "port": outside.port,
            "login": LOGIN,
            "password": PASSWORD,
            "extra": json.dumps({"headers": {"X-Key": HEADER}}),
        },
    )


def launch_at_second_try(
    airflow: RealAirflow, outside: OutsideService, status: int
) -> tuple[Run, ReceivedRequest]:
    """Trigger a run whose first request gets 503, and whose later requests are answered with their own content."""
    before = len(outside.requests("/job"))
    outside.script("/job", REFUSED)
    run = airflow.trigger("webhook_secrets")
    request = outside.wait_for_requests("/job", before + 1)[before]
    assert request.headers["x-password"] == PASSWORD
    assert request.headers["x-key"] == HEADER
    outside.script("/job", echo(request, 503), echo(request, status))
    outside.wait_for_requests("/job", before + 3)
    return run, request


def echo(request: ReceivedRequest, status: int) -> Answer:
    """Return an answer that contains everything from the request."""
    body = {"headers": request.headers, "text": request.text, "url": request.callback_url}
    return Answer(status=status, body=body, headers={"Retry-After": "1"})


def use_token_in_every_way(request: ReceivedRequest) -> None:
    """Send valid and invalid requests with the token; each adds a line to the endpoint's access log."""
    url, token = request.callback_url, request.headers["x-token"]
    base = url.rpartition("/callbacks/")[0]
    bearer = {"Authorization": f"Bearer {token}"}
    with httpx.Client(trust_env=False) as http:
        assert http.get(url).status_code == 200
        assert http.post(f"{url}/heartbeat", json={"progress": 0.5}).status_code == 200
        assert http.post(f"{base}/callbacks/heartbeat", json={}, headers=bearer).status_code == 200
        assert http.post(url, content=b"no JSON").status_code == 400
        assert http.put(url, json={}).status_code == 405
        assert http.post(f"{url}/no-such-verb", json={}).status_code == 404
        assert http.get(f"{url}?token={token}").status_code == 200
        assert http.patch(f"{base}/dag/x/task/y/", params={"state": token}, headers=bearer).status_code == 400


async def signatures(airflow: RealAirflow) -> list[str]:
    """Return the signatures of the tokens of all waits."""
    inbox = await Inbox.open(airflow.inbox_url, retry_timeout=60)
    tokens = [await inbox.keys.token(wait.id, wait.key_id) for wait in await inbox.waits.find()]
    await inbox.close()
    return [token.rpartition(".")[2] for token in tokens]


def everything_written(airflow: RealAirflow) -> str:
    """Return all logs of tasks and components."""
    return "\n".join(file.read_text(errors="replace") for file in airflow.written_files())


def excerpt(text: str, secret: str) -> str:
    """Return the text around the first occurrence of a secret."""
    place = text.index(secret)
    return text[max(0, place - 300) : place + 100]
