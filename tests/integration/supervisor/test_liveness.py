"""A program whose liveness check fails is restarted alone, with a real supervisord."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from integration.supervisor.supervisord_daemon import Daemon, daemon, python, until
from unit.high_availability.support import facts
from unit.triggers.support import Runs, eventually, new_attempt

from deferrable_ops.checks import HttpCheck, TcpCheck
from deferrable_ops.high_availability.check_evaluator import CheckRules
from deferrable_ops.supervisord import SupervisorAirflowConfiguration, SupervisorSSHAirflowConfiguration
from deferrable_ops.supervisord.processes import ProcessState
from deferrable_ops.testing import memory_inbox
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.supervisor.check_trigger import SupervisorCheckTrigger
from deferrable_ops.triggers.supervisor.configuration import serialize_configuration
from real_sshd import RealSshd

pytest.importorskip("supervisor.supervisord")

QUICK: dict[str, Any] = {"check_interval": 0.1, "startsecs": 0}
SLEEPS = {"command": python("import signal; signal.pause()")}
SERVER = """
import http.server, os, signal, sys, time
port, sick, stubborn = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "stubborn"
requests = open(sick + ".requests", "a")
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        requests.write(".")
        requests.flush()
        if os.path.exists(sick) and open(sick).read() == "hangs":
            time.sleep(60)
        self.send_response(500 if os.path.exists(sick) else 200)
        self.end_headers()

http.server.ThreadingHTTPServer(("", port), Handler).serve_forever()
"""


@pytest.fixture
async def runs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Runs]:
    """Runs triggers on an inbox for this test."""
    monkeypatch.setattr(TaskTrigger, "log", logging.getLogger("task"))
    caplog.set_level(logging.INFO, "task")
    async with memory_inbox() as inbox:
        runs = Runs(inbox)
        yield runs
        await runs.stop()


class Web:
    """A program with an HTTP server that can become sick, and its configuration."""

    def __init__(
        self, folder: Path, kind: str = "normal", host: str = "127.0.0.1", timeout: float = 10, **fields: Any
    ) -> None:
        self.sick = folder / "sick"
        self.requests = folder / "sick.requests"
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        server = folder / "server.py"
        server.write_text(SERVER)
        self.program = {
            "command": f"{sys.executable} {server} {port} {self.sick} {kind}",
            "healthy": HttpCheck(f"http://{host}:{port}/health", timeout=timeout),
            "failure_threshold": 2,
            "stopwaitsecs": 2,
            **fields,
        }

    async def is_checked(self, times: int = 5) -> None:
        """Wait until it has been checked again a few times."""
        before = self._requests()

        async def more() -> bool:
            return self._requests() >= before + times

        await until(more)

    def _requests(self) -> int:
        return self.requests.stat().st_size if self.requests.exists() else 0


def watching(found: Daemon, config: SupervisorAirflowConfiguration | None = None) -> SupervisorCheckTrigger:
    run = facts(start_date=datetime.now(UTC))
    return SupervisorCheckTrigger(
        configuration=serialize_configuration(config or found.config),
        rules=CheckRules().as_json(),
        run_facts=run.as_json(),
    )


async def pids(found: Daemon) -> dict[str, int]:
    return {one["name"]: one["pid"] for one in await found.client.processes()}


async def start(found: Daemon, *programs: str) -> None:
    for name in programs:
        await found.start(f"{name}:{name}")


async def restarted(found: Daemon, before: dict[str, int]) -> dict[str, int]:
    """Wait until the program web was restarted, and return the pids of all programs."""

    async def is_restarted() -> dict[str, int] | None:
        now = await pids(found)
        return now if now["web"] not in (0, before["web"]) else None

    after: dict[str, int] = await until(is_restarted)
    return after


async def test_sick_program_is_restarted_alone_until_it_is_healthy(
    runs: Runs, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    web = Web(tmp_path)
    async with daemon(program={"web": web.program, "other": SLEEPS}, **QUICK) as found:
        await start(found, "web", "other")
        run = runs.start(watching(found))
        await web.is_checked()
        before = await pids(found)
        web.sick.write_text("fails")
        after = await restarted(found, before)
        web.sick.unlink()
        assert after["other"] == before["other"]
        await web.is_checked()
        assert await pids(found) == after, "a healthy program is not restarted"
        assert not run.task.done()
        text = caplog.text
        assert "web is not healthy (failed check 2 of 2): http" in text
        assert "/health answered with the status 500" in text
        assert "Restarting web, because its check healthy=HttpCheck failed 2 times in a row" in text
        assert "Stopping web:web, because it was not healthy" in text
        assert "crash loop" not in text


async def test_program_that_hangs_is_restarted(runs: Runs, tmp_path: Path) -> None:
    web = Web(tmp_path, timeout=0.5)
    async with daemon(program={"web": web.program}, **QUICK) as found:
        await start(found, "web")
        runs.start(watching(found))
        await web.is_checked()
        web.sick.write_text("hangs")
        await restarted(found, await pids(found))


async def test_program_that_does_not_become_healthy_is_restarted_but_not_in_a_crash_loop(
    runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    closed = {"healthy": TcpCheck("127.0.0.1", 1), "failure_threshold": 2, "ready_timeout": 0.3}
    policies = {"web": {"crash_restarts": 1, "crash_give_up": 0, "otherwise": "fail"}}
    async with daemon(program={"web": SLEEPS | closed, "other": SLEEPS}, policies=policies, **QUICK) as found:
        await start(found, "web", "other")
        before = await pids(found)
        run = runs.start(watching(found))
        await eventually(lambda: caplog.text.count("Starting web:web") >= 2, "two restarts")
        assert not run.task.done()
        assert (await pids(found))["other"] == before["other"]
        assert "crash loop" not in caplog.text


async def test_killed_triggerer_leaves_the_restart_to_the_next(runs: Runs, tmp_path: Path) -> None:
    """Otherwise, the stopped program would count as ended well, and the run would be a success."""
    web = Web(tmp_path, "stubborn")
    async with daemon(program={"web": web.program}, **QUICK) as found:
        await start(found, "web")
        trigger, attempt = watching(found), new_attempt()
        run = runs.start(trigger, attempt)
        await web.is_checked()
        before = await pids(found)
        web.sick.write_text("fails")

        async def is_in(state: ProcessState) -> bool:
            (one,) = await found.client.processes()
            return ProcessState(one["state"]) is state

        await until(lambda: is_in(ProcessState.STOPPING))
        await run.kill_process()
        web.sick.unlink()
        await until(lambda: is_in(ProcessState.STOPPED))
        run = runs.start(trigger, attempt)
        await until(lambda: is_in(ProcessState.RUNNING))
        assert (await pids(found))["web"] != before["web"]
        await web.is_checked()
        assert not run.task.done()


async def test_starting_program_has_time_until_it_is_ready(runs: Runs, tmp_path: Path) -> None:
    web = Web(tmp_path, failure_threshold=1, ready_timeout=60)
    web.sick.touch()
    async with daemon(program={"web": web.program}, **QUICK) as found:
        await start(found, "web")
        before = await pids(found)
        runs.start(watching(found))
        await web.is_checked()
        assert await pids(found) == before


async def test_sick_program_is_restarted_over_ssh(
    runs: Runs, sshd_server: RealSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WEB", sshd_server.connection())
    web = Web(tmp_path, host=socket.gethostname())
    async with daemon(program={"web": web.program}, **QUICK) as found:
        await start(found, "web")
        before = await pids(found)
        fields = found.config.with_secrets() | {"ssh_conn_id": "web"}
        runs.start(watching(found, SupervisorSSHAirflowConfiguration(**fields)))
        await web.is_checked()
        assert await pids(found) == before
        web.sick.write_text("fails")
        await restarted(found, before)
