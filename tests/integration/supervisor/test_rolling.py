"""Changed programs are replaced alone, and with rolling=True one after another, by a real supervisord."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from integration.supervisor.support import BEGIN, SLEEP, STUBBORN, Place, ignores_sigterm
from unit.triggers.supervisor.fakes import watching
from unit.triggers.support import Run, Runs, eventually

from deferrable_ops.checks import TcpCheck
from deferrable_ops.supervisord import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.processes import Process, ProcessState
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.supervisor.configuration import supervisord_address
from deferrable_ops.triggers.supervisor.daemon.drift import DriftReconciler
from deferrable_ops.upstreams.supervisord.client import use_supervisord

pytest.importorskip("supervisor.supervisord")

OLD = {"command": SLEEP}
NEW = {"command": SLEEP, "startsecs": 1}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(TaskTrigger, "log", logging.getLogger("task"))
    monkeypatch.setattr(DriftReconciler, "min_interval", 0.2)
    caplog.set_level(logging.INFO, "task")


class Watched:
    """The programs of a supervisord, observed from outside.

    :ivar most_down: the largest number of programs that did not run at the same time.
    """

    def __init__(self) -> None:
        self.processes: dict[str, Process] = {}
        self.pids: dict[str, int] = {}
        self.most_down = 0

    def moved(self) -> set[str]:
        """Return the programs that run with another pid than at the beginning."""
        return {
            name
            for name, process in self.processes.items()
            if process.pid not in (0, self.pids[name]) and process.state is ProcessState.RUNNING
        }

    def state(self, name: str) -> ProcessState | None:
        return self.processes[name].state if name in self.processes else None


@asynccontextmanager
async def observed(cfg: SupervisorAirflowConfiguration) -> AsyncIterator[Watched]:
    found = Watched()

    async def observe() -> None:
        while True:
            own = [Process.from_info(info) for info in await client.processes()]
            found.processes = {process.name: process for process in own}
            running = [process for process in own if process.state is ProcessState.RUNNING]
            found.most_down = max(found.most_down, 3 - len(running))
            await asyncio.sleep(0.01)

    async with use_supervisord(supervisord_address(cfg, cfg.socket_path), call_timeout=60) as client:
        task = asyncio.create_task(observe())
        await eventually(lambda: len(found.processes) == 3, "the programs")
        found.pids = {name: process.pid for name, process in found.processes.items()}
        yield found
        assert not task.done(), "supervisord answered all the time"
        task.cancel()


async def begun(place: Place, **programs: dict[str, Any]) -> SupervisorAirflowConfiguration:
    cfg = place.cfg(program=dict.fromkeys("abc", OLD) | programs, startretries=1)
    await place.run_steps(cfg, *BEGIN)
    return cfg


def changed(place: Place, rolling: bool = True, **programs: dict[str, Any]) -> SupervisorAirflowConfiguration:
    """Return a configuration with other settings of these programs."""
    program = dict.fromkeys("abc", OLD) | programs
    return place.cfg(program=program, drift="apply", rolling=rolling, check_interval=0.05, startretries=1)


async def rolled(place: Place, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    await eventually(lambda: "Replaced all changed programs" in caplog.text or run.task.done(), "the end", 30)
    assert not run.task.done()


@pytest.mark.parametrize("rolling", [False, True])
async def test_only_the_changed_program_is_replaced(
    place: Place, runs: Runs, rolling: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with observed(await begun(place)) as found:
        cfg = changed(place, rolling, b=NEW)
        await place.run_steps(cfg, *BEGIN)
        runs.start(watching(cfg))
        await eventually(lambda: found.moved() == {"b"}, "the replaced program")
        assert found.most_down == 1
        if rolling:
            await eventually(lambda: "Replaced all changed programs" in caplog.text, "the end")
        assert found.moved() == {"b"}


async def test_rolling_never_has_two_programs_down_at_the_same_time(
    place: Place, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    async with observed(await begun(place)) as found:
        cfg = changed(place, a=NEW, b=NEW, c=NEW)
        await place.run_steps(cfg, *BEGIN)
        assert found.moved() == set(), "the task that watches the programs replaces them"
        run = runs.start(watching(cfg))
        await rolled(place, run, caplog)
        assert found.moved() == {"a", "b", "c"}
        assert found.most_down == 1


async def test_rolling_waits_until_a_program_is_ready(
    place: Place, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    ready = {"ready": TcpCheck("127.0.0.1", port), "ready_timeout": 30}
    async with observed(await begun(place)) as found:
        cfg = changed(place, a=NEW | ready, b=NEW, c=NEW)
        run = runs.start(watching(cfg))
        await eventually(lambda: found.moved() == {"a"}, "the first program")
        connected = asyncio.Event()

        async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connected.set()
            writer.close()

        assert found.moved() == {"a"}
        async with await asyncio.start_server(accept, "127.0.0.1", port):
            await rolled(place, run, caplog)
        assert connected.is_set()
        assert found.moved() == {"a", "b", "c"}


@pytest.mark.parametrize(
    "broken, reason",
    [
        ({"command": "sh -c 'exit 3'", "startsecs": 1}, "a:a is FATAL"),
        ({"command": "sh -c 'exit 3'", "startsecs": 0, "autorestart": False}, "a:a exited with 3"),
        ({"command": "/no/such/program"}, "a:a was never started"),
        (NEW | {"ready": TcpCheck("127.0.0.1", 1), "ready_timeout": 1}, "a was not ready within 1 s"),
    ],
)
async def test_program_that_does_not_start_stops_the_rolling_update(
    place: Place, runs: Runs, caplog: pytest.LogCaptureFixture, broken: dict[str, Any], reason: str
) -> None:
    async with observed(await begun(place)) as found:
        cfg = changed(place, a=broken, b=NEW, c=NEW)
        run = runs.start(watching(cfg))
        await eventually(lambda: "Stopped the rolling update" in caplog.text, "the stop")
        assert f"Stopped the rolling update: {reason}" in caplog.text
        assert "keep running with their old configuration: b, c" in caplog.text
        assert "Replaced all changed programs" not in caplog.text
        # The task goes on to watch the others, with their old configuration.
        again = runs.start(watching(cfg), run.attempt)
        await run.kill_process()
        caplog.clear()
        await eventually(lambda: "Stopped the rolling update" in caplog.text, "the stop after a restart")
        assert not again.task.done()
        assert found.moved() <= {"a"}
        assert found.most_down == 1


async def test_last_program_that_does_not_start_does_not_restart_the_others(
    place: Place, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    async with observed(await begun(place)) as found:
        cfg = changed(place, c={"command": "sh -c 'exit 3'", "startsecs": 1})
        run = runs.start(watching(cfg))
        await eventually(lambda: "Stopped the rolling update: c:c is FATAL" in caplog.text, "the stop")
        assert "old configuration: none" in caplog.text
        assert found.moved() == set()
        assert not run.task.done()


async def test_rolling_update_goes_on_when_the_program_is_corrected(
    place: Place, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    async with observed(await begun(place)) as found:
        switch = place.folder / "works"
        command = f"sh -c 'test -e {switch} && exec sleep 1000'"
        cfg = changed(place, a={"command": command, "startsecs": 1}, b=NEW, c=NEW)
        run = runs.start(watching(cfg))
        await eventually(lambda: "Stopped the rolling update: a:a is FATAL" in caplog.text, "the stop")
        switch.touch()
        async with use_supervisord(supervisord_address(cfg, cfg.socket_path)) as client:
            await client.call("supervisor.startProcess", "a:a", False)
        await rolled(place, run, caplog)
        assert found.moved() == {"a", "b", "c"}
        assert found.most_down == 1


async def test_triggerer_that_is_killed_while_a_program_stops_is_replaced_by_another(
    place: Place, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = await begun(place, a={"command": STUBBORN, "stopwaitsecs": 2})
    async with observed(cfg) as found:
        await eventually(lambda: ignores_sigterm(found.pids["a"]), "the program that ignores SIGTERM")
        cfg = changed(place, a=NEW | {"stopwaitsecs": 2}, b=NEW, c=NEW)
        run = runs.start(watching(cfg))
        await eventually(lambda: found.state("a") is ProcessState.STOPPING, "the stop")
        await run.kill_process()
        await eventually(lambda: found.state("a") is ProcessState.STOPPED, "the stopped program")
        await rolled(place, runs.start(watching(cfg), run.attempt), caplog)
        assert found.moved() == {"a", "b", "c"}
        assert found.most_down == 1
