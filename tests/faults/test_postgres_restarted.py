"""The inbox's Postgres, restarted while services call back: politely and not."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from faults.support.load import Load, paths, payload
from faults.support.processes import ServedEndpoint, environment, restart_with
from faults.support.watching import REGISTERED

from deferrable_ops.inbox import Inbox
from deferrable_ops.outcome import Success, outcome_from_json
from real_airflow import OutsideService, Postgres, RealAirflow, wait_until

PART, FULL = 2_000, 10_000  # callbacks, without and with `--long`
RESTARTS = ("immediate", "fast", "immediate", "fast")
WATCHING = Path(__file__).parent / "support" / "watching.py"


@pytest.fixture
def server(new_postgres: Callable[[dict[str, str]], Postgres]) -> Postgres:
    """The inbox's own server."""
    return new_postgres({})


def restart(server: Postgres, mode: str, load: Load | None = None) -> None:
    """Do what `pg_ctl restart -m MODE` does.

    :param load: the server stays away until one of these callbacks was answered with an error.
    """
    {"immediate": server.crash, "fast": server.stop}[mode]()
    if load is not None:
        errors = load.errors
        wait_until(lambda: load.errors > errors, "a callback to be refused", every=0.01)
    server.start()


async def test_restarts_under_load_lose_no_callback_and_the_waiting_process_learns_of_all(
    server: Postgres, tmp_path: Path, full_load: bool
) -> None:
    callbacks = FULL if full_load else PART
    url, seen = server.create_database("inbox", driver="asyncpg"), tmp_path / "seen"
    endpoints = [ServedEndpoint(tmp_path, url).start() for _ in range(2)]
    program = [sys.executable, WATCHING, str(callbacks), seen]
    tests = os.fspath(WATCHING.parents[2])
    watching = subprocess.Popen(program, env={**environment(tmp_path, url), "PYTHONPATH": tests})
    try:
        await asyncio.to_thread(wait_for_line, watching, seen, REGISTERED)
        inbox = await Inbox.open(url, retry_timeout=60)
        urls = [endpoint.wait_until_ready().url for endpoint in endpoints]
        load = Load(urls, await paths(inbox, range(callbacks)))

        for number, mode in enumerate(RESTARTS):
            lot = range(number * callbacks // 4, (number + 1) * callbacks // 4)
            half = len(load.acknowledged) + len(lot) // 2
            restart_now = partial(asyncio.to_thread, restart, server, mode, load)
            await asyncio.gather(
                load.send(lot, until_acknowledged=True), load.when_acknowledged(half, restart_now)
            )

        assert load.acknowledged.keys() == set(range(callbacks))
        assert await load.send_again(range(0, callbacks, 10)) == {
            number: load.acknowledged[number] for number in range(0, callbacks, 10)
        }
        await inbox.close()
        await asyncio.to_thread(watching.wait, 60)
        assert watching.returncode == 0
    finally:
        watching.kill()
        for endpoint in endpoints:
            endpoint.kill()

    ended = [json.loads(line) for line in seen.read_text().splitlines()[1:]]
    assert len(ended) == callbacks
    assert {line["number"]: outcome_from_json(line["outcome"]) for line in ended} == {
        number: Success(payload(number)) for number in range(callbacks)
    }


@pytest.mark.long
@pytest.mark.parametrize("started_airflow", ["postgres"], indirect=True)
def test_task_that_waits_on_a_real_airflow_outlives_restarts_of_its_inbox(
    airflow: RealAirflow, outside: OutsideService, server: Postgres
) -> None:
    inbox_url = server.create_database("inbox", driver="asyncpg")
    restart_with(airflow, {"AIRFLOW__DEFERRABLE_OPS__INBOX_URL": inbox_url})
    run = airflow.trigger("webhook_cancel", {"service": outside.url})
    [request] = outside.wait_for_requests("/job")
    wait_until(lambda: "Launched the work: " in run.task("job").log(), "the launch to be recorded")

    for mode in ("immediate", "fast"):
        restart(server, mode)
    wait_until(
        lambda: outside.call_back(request, {"after": "restarts"}).status_code == 200,
        "the callback to be taken",
    )

    run.wait_for("success")
    assert run.task("job").xcom() == {"after": "restarts"}
    assert [request.path for request in outside.requests()] == ["/job"]
    assert run.worker_processes() == 0


def wait_for_line(process: subprocess.Popen[bytes], file: Path, line: str) -> None:
    def is_there() -> bool:
        assert process.poll() is None, "the waiting process ended by itself"
        return file.exists() and json.dumps(line) in file.read_text().splitlines()

    wait_until(is_there, f"{line!r} in {file}", timeout=120)
