"""Steps that stop processes: in time, by force, after a user kills a task, and no other processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time import task_runner
from integration.supervisor.support import (
    BEGIN,
    END,
    SLEEP,
    STUBBORN,
    Place,
    alive,
    is_stopped,
    set_call_timeout,
    set_timings,
    until,
)
from unit.triggers.support import Run, new_attempt

from deferrable_ops.inbox import WaitState
from deferrable_ops.inbox.inbox import given_inbox
from deferrable_ops.outcome import Success
from deferrable_ops.triggers.lifecycle.cancellation import cancel_due_work
from deferrable_ops.triggers.supervisor.host import StepTimings
from deferrable_ops.upstreams.supervisord.client import Supervisord

pytest.importorskip("supervisor.supervisord")


async def test_slow_stop_has_its_time_with_few_calls_and_a_free_event_loop(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    poll_interval = StepTimings().poll_interval
    set_timings(monkeypatch, poll_interval=poll_interval)
    cfg = place.cfg(program={"slow": {"command": STUBBORN, "stopwaitsecs": 2}})
    await place.start_stubborn(cfg)
    asked: list[str] = []
    real = Supervisord.call

    async def count(self: Supervisord, method: str, *arguments: Any) -> Any:
        asked.append(method)
        return await real(self, method, *arguments)

    monkeypatch.setattr(Supervisord, "call", count)
    run = place.run("stop-programs", cfg)
    loop = asyncio.get_running_loop()
    began, longest = loop.time(), 0.0
    while not run.task.done():
        before = loop.time()
        await asyncio.sleep(0.01)
        longest = max(longest, loop.time() - before)
    assert isinstance(await run.outcome(), Success)
    assert 1.5 < loop.time() - began < 5
    assert longest < 1, "the stop blocked the event loop"
    assert asked.count("supervisor.getAllProcessInfo") <= (loop.time() - began) / poll_interval + 2
    assert len(asked) <= asked.count("supervisor.getAllProcessInfo") + 3
    assert place.processes() == []


async def test_all_programs_stop_at_the_same_time(place: Place) -> None:
    cfg = place.cfg(program={f"p{i}": {"command": STUBBORN, "stopwaitsecs": 1} for i in range(6)})
    await place.start_stubborn(cfg)
    (daemon,) = place.daemons()
    async with asyncio.timeout(5):  # one after the other would take six seconds
        await place.run_steps(cfg, "stop-supervisor")
    assert not alive(daemon)
    assert place.processes() == []
    assert not cfg.socket_path.exists()


async def test_stop_step_kills_a_supervisord_that_does_not_answer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_call_timeout(monkeypatch, 0.3)
    set_timings(monkeypatch, shutdown_timeout=0.5)
    cfg = place.cfg(stopwaitsecs=1)
    await place.run_steps(cfg, *BEGIN)
    (daemon,) = place.daemons()
    os.kill(daemon, signal.SIGSTOP)
    until(lambda: is_stopped(daemon))
    result = await place.run_steps(cfg, "stop-supervisor")
    assert result["stopped"] == [daemon]
    assert (place.daemons(), place.processes()) == ([], [])
    assert not cfg.socket_path.exists()
    await place.run_steps(cfg, "unconfigure-supervisor")
    assert list(place.folder.iterdir()) == []


async def test_force_kill_reaches_processes_with_another_group_or_environment_and_no_others(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_call_timeout(monkeypatch, 0.3)
    cfg = place.cfg(
        program={
            "left": {"command": f"setsid --fork {SLEEP}", "autorestart": False},
            "bare": {"command": f"env -i {SLEEP}"},
        }
    )
    other = place.cfg()
    other = type(cfg)(working_dir=place.folder / "other", program={"a": {"command": SLEEP}}, startsecs=0)
    await place.run_steps(other, *BEGIN)
    await place.run_steps(cfg, *BEGIN)
    (daemon,) = place.daemons()
    bare = [pid for pid in map(int, children_of(daemon)) if alive(pid)]
    left = await asyncio.to_thread(until, place.processes)
    os.kill(daemon, signal.SIGSTOP)
    until(lambda: is_stopped(daemon))
    result = await place.run_steps(cfg, "force-kill")
    assert set(result["killed"]) >= {daemon, *bare, *left}
    assert not any(alive(pid) for pid in (daemon, *bare, *left))
    assert not cfg.socket_path.exists()
    assert cfg.config_path.exists()
    async with asyncio.timeout(10):
        beside = await place.run_steps(other, "start-programs")
    assert beside["programs"]["a:a"]["state"] == "RUNNING"
    await place.run_steps(other, *END)


def children_of(pid: int) -> list[str]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.split()


async def test_only_created_files_are_removed(place: Place) -> None:
    outside = place.folder / "outside"
    outside.mkdir()
    (outside / "kept").write_text("mine")
    cfg = place.cfg(config_path=place.folder / "supervisord.conf")
    await place.run_steps(cfg, *BEGIN)
    refused = await place.fail_step(cfg, "unconfigure-supervisor")
    assert "supervisord still runs" in refused.reason
    assert cfg.config_path.exists()
    (place.folder / "s" / "link").symlink_to(outside)
    (place.folder / "s" / "a" / "written-by-program").write_text("x")
    await place.run_steps(cfg, *END)
    assert [path.name for path in place.folder.iterdir()] == ["outside"]
    assert (outside / "kept").read_text() == "mine"
    await place.run_steps(cfg, "unconfigure-supervisor")


async def test_supervisord_started_by_a_user_is_adopted_and_stopped(place: Place) -> None:
    cfg = place.cfg()
    await place.run_steps(cfg, "configure-supervisor")
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(cfg.config_path)]
    subprocess.run(command, check=True, start_new_session=True)
    (daemon,) = await asyncio.to_thread(until, place.daemons)
    result = await place.run_steps(cfg, "start-supervisor")
    assert (result["pid"], result["started"]) == (daemon, False)
    await place.run_steps(cfg, "start-programs")
    refused = await place.fail_step(cfg, "unconfigure-supervisor")
    assert "supervisord still runs" in refused.reason
    assert cfg.config_path.exists()
    await place.run_steps(cfg, *END)
    assert (place.daemons(), place.processes(), list(place.folder.iterdir())) == ([], [], [])


async def test_directory_with_other_files_keeps_them(place: Place) -> None:
    own = place.folder / "s"
    (own / "a").mkdir(parents=True, mode=0o700)
    own.chmod(0o700)
    (own / "settings.toml").write_text("mine")
    (own / "a" / "data").write_text("mine")
    cfg = place.cfg(program={"a": {"command": SLEEP, "numprocs": 2, "process_name": "%(process_num)s"}})
    await place.run_steps(cfg, *BEGIN, *END)
    left = sorted(str(path.relative_to(own)) for path in own.rglob("*"))
    assert left == ["a", "a/data", "settings.toml"]


async def test_directory_that_is_a_link_is_refused(place: Place) -> None:
    elsewhere = place.folder / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "kept").write_text("mine")
    (place.folder / "s").symlink_to(elsewhere)
    failed = await place.fail_step(place.cfg(), "configure-supervisor")
    assert "link" in failed.reason
    assert not failed.retryable
    assert [path.name for path in elsewhere.iterdir()] == ["kept"]


async def killed(place: Place, run: Run, state: WaitState = WaitState.KILLED) -> None:
    """End a task as a user does."""
    await run.wait()
    await run.kill_process()
    await place.runs.inbox.waits.kill([run.attempt.wait_id])
    assert (await run.wait()).state is state
    await cancel_due_work(place.runs.inbox, run.attempt.wait_id)


async def start_and_stay(place: Place, cfg: Any, run_id: str = "monday") -> Run:
    """Run the first steps of a DAG run, up to a start of programs that does not end."""
    steps = {step: new_attempt(task_id=step) for step in BEGIN}
    steps = {step: type(one)(one.ti_id, 1, "dag", run_id, step) for step, one in steps.items()}
    for step in BEGIN[:2]:
        await place.run(step, cfg, steps[step]).outcome()
    run = place.run(BEGIN[2], cfg, steps[BEGIN[2]])
    await asyncio.to_thread(until, lambda: len(place.processes()) == len(cfg.programs))
    while not [
        wait for wait in await place.runs.inbox.waits.get_many([run.attempt.wait_id]) if wait.progress
    ]:
        await asyncio.sleep(0.01)
    return run


async def test_killing_a_task_tears_down_programs_supervisord_and_files(place: Place) -> None:
    cfg = place.cfg(startsecs=30)
    await killed(place, await start_and_stay(place, cfg))
    assert (place.daemons(), place.processes()) == ([], [])
    assert list(place.folder.iterdir()) == []
    assert await place.runs.inbox.daemons.all() == []


async def test_nothing_is_stopped_without_stop_on_exit(place: Place) -> None:
    cfg = place.cfg(startsecs=30, stop_on_exit=False)
    await killed(place, await start_and_stay(place, cfg))
    assert len(place.processes()) == 2


async def test_ending_triggerer_and_newer_attempt_stop_nothing(place: Place) -> None:
    cfg = place.cfg(startsecs=30)
    run = await start_and_stay(place, cfg)
    await run.kill_process()
    again = place.run("start-programs", cfg, new_attempt(2, of=run.attempt, task_id="start-programs"))
    await place.runs.inbox.waits.register(_wait_of(again))
    assert (await run.wait()).state is WaitState.SUPERSEDED
    await cancel_due_work(place.runs.inbox, run.attempt.wait_id)
    assert len(place.processes()) == 2
    await again.kill_process()


def _wait_of(run: Run) -> Any:
    from deferrable_ops.inbox import NewWait

    attempt = run.attempt
    return NewWait(attempt, "supervisor", 60.0)


async def test_supervisord_used_by_another_run_keeps_running(place: Place) -> None:
    cfg = place.cfg(startsecs=30)
    monday = await start_and_stay(place, cfg)
    tuesday = await start_and_stay(place, cfg, "tuesday")
    await killed(place, monday)
    assert len(place.processes()) == 2
    await killed(place, tuesday)
    assert place.processes() == []


class Triggerer:
    """Answers that all tasks have this state."""

    def __init__(self, state: str) -> None:
        self._state = state

    async def asend(self, question: Any) -> Any:
        states = dict.fromkeys(question.task_ids, self._state)
        return SimpleNamespace(task_states=dict.fromkeys(question.run_ids, states))


async def test_marking_a_task_as_success_stops_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = place.cfg(startsecs=30)
    run = await start_and_stay(place, cfg)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", Triggerer("success"), raising=False)
    await killed(place, run)
    assert len(place.processes()) == 2
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", Triggerer("failed"))
    await killed(place, await start_and_stay(place, cfg))
    assert place.processes() == []


async def test_step_timeout_names_the_cause(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    set_call_timeout(monkeypatch, 0.1)
    set_timings(monkeypatch, answer_timeout=0.2)
    cfg = place.cfg()
    await place.run_steps(cfg, *BEGIN[:2])
    (daemon,) = place.daemons()
    os.kill(daemon, signal.SIGSTOP)
    until(lambda: is_stopped(daemon))
    failed = await place.fail_step(cfg, "start-supervisor", timeout=3.0)
    assert failed.retryable
    assert "start-supervisor did not end within 3 s" in failed.reason
    assert f"(pid {daemon}) runs" in failed.reason
    assert "force-kill" in failed.reason
    assert place.daemons() == [daemon], "a second supervisord was started"


def test_required_tools_are_installed() -> None:
    assert shutil.which("setsid")
    assert shutil.which("pgrep")
    assert given_inbox.get() is None
