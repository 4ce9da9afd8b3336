"""The check: what ends it, what it changes, and what a restart of the triggerer keeps."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from unit.triggers.supervisor.fakes import FakeHost, FakeSupervisord, two, watching
from unit.triggers.support import Run, Runs, eventually, new_attempt

from deferrable_ops.exceptions import (
    SupervisordRefused,
)
from deferrable_ops.inbox import Attempt, WaitState
from deferrable_ops.outcome import Failure, Skip, Success
from deferrable_ops.supervisord import crash_loops
from deferrable_ops.supervisord.processes import ProcessState
from deferrable_ops.triggers.supervisor import check_trigger
from deferrable_ops.triggers.supervisor.watch import program_watcher

CRASHES = {"crash_restarts": 2, "crash_window": 60, "crash_delay": 30, "crash_give_up": 1}


@pytest.fixture
def daemon() -> FakeSupervisord:
    return FakeSupervisord()


@pytest.fixture
def place(daemon: FakeSupervisord, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    place = FakeHost(daemon)
    monkeypatch.setattr(check_trigger, "open_host", place.open_host)
    return place


async def kept(run: Run) -> dict[str, Any]:
    progress: dict[str, Any] = (await run.wait()).progress or {}
    return progress


@pytest.mark.parametrize(
    "code, outcome",
    [
        (0, Success(["pass", "stop"])),
        (1, Success(["fail", "retrigger"])),
        (3, Success(["fail", "stop"])),
        (4, Skip("a exited with 4; b exited with 4")),
        (5, Failure("a exited with 5; b exited with 5")),
    ],
)
@pytest.mark.usefixtures("place")
async def test_exit_codes_end_the_task_by_the_policy(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path, code: int, outcome: Any
) -> None:
    policy = {"exit_codes": {3: "fail", 4: "skip", 5: "retry"}}
    run = runs.start(watching(two(tmp_path, policy=policy)))
    await daemon.looked()
    assert not run.task.done(), "both are running"
    daemon.set("a", ProcessState.EXITED, code)
    daemon.set("b", ProcessState.EXITED, code)
    found = await run.outcome()
    if isinstance(found, (Skip, Failure)):
        found = type(found)(found.reason.replace("a:a", "a").replace("b:b", "b"))
    assert found == outcome


@pytest.mark.usefixtures("place")
async def test_each_program_has_its_own_policy(runs: Runs, daemon: FakeSupervisord, tmp_path: Path) -> None:
    cfg = two(tmp_path, policy={"otherwise": "fail"}, policies={"b": {"exit_codes": {1: "success"}}})
    run = runs.start(watching(cfg))
    daemon.set("b", ProcessState.EXITED, 1)
    await daemon.looked()
    assert not run.task.done(), "b has ended well, and a is running"
    daemon.set("a", ProcessState.EXITED, 1)
    assert await run.outcome() == Success(["fail", "stop"])


@pytest.mark.usefixtures("place")
async def test_last_retrigger_stops(runs: Runs, daemon: FakeSupervisord, tmp_path: Path) -> None:
    daemon.set("a", ProcessState.FATAL, spawnerr="no such file")
    run = runs.start(watching(two(tmp_path), maxretrigger=0))
    assert await run.outcome() == Success(["fail", "stop"])


@pytest.mark.usefixtures("place")
async def test_runtime_ends_the_check_between_two_polls(runs: Runs, tmp_path: Path) -> None:
    cfg = two(tmp_path).model_copy(update={"check_interval": timedelta(hours=1)})
    async with asyncio.timeout(10):
        assert await runs.start(watching(cfg, runtime=0.3)).outcome() == Success(["pass", "stop"])


@pytest.mark.usefixtures("place")
async def test_timeout_retriggers_with_the_last_result(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path
) -> None:
    run = runs.start(watching(two(tmp_path), timeout=0.5))
    assert await run.outcome() == Success(["pass", "retrigger"])
    assert (await run.wait()).state is WaitState.EXPIRED
    assert daemon.readings > 2


@pytest.mark.usefixtures("place")
async def test_running_programs_cause_no_calls_and_no_writes(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path
) -> None:
    run = runs.start(watching(two(tmp_path)))
    await daemon.looked()
    before = await kept(run)
    for _ in range(5):
        await daemon.looked()
    assert daemon.calls == [("supervisor.reloadConfig",)], "only once, at the start"
    assert before["health"] == "pass"
    assert await kept(run) == before


@pytest.mark.usefixtures("place")
async def test_unchanged_reading_is_not_evaluated_again(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, look = list[Any](), program_watcher.evaluate

    def counted(*arguments: Any) -> Any:
        judged.append(arguments)
        return look(*arguments)

    monkeypatch.setattr(program_watcher, "evaluate", counted)
    runs.start(watching(two(tmp_path, policy=CRASHES)))
    for _ in range(5):
        await daemon.looked()
        daemon.pass_time(5)
    assert len(judged) == 1
    daemon.restart("a")
    await daemon.looked()
    before = len(judged)
    daemon.pass_time(5)
    await daemon.looked()
    assert len(judged) > before, "a restart leaves the window with time"


@pytest.mark.usefixtures("place")
async def test_crash_loop_is_paused_and_resumed_and_given_up(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0])
    monkeypatch.setattr(crash_loops, "time", clock)
    cfg = two(tmp_path, policy=CRASHES | {"otherwise": "fail"})
    run = runs.start(watching(cfg))
    await daemon.looked()
    for _ in range(2):
        daemon.restart("a")
        await daemon.looked()
    stop, start = ("supervisor.stopProcess", "a:a", False), ("supervisor.startProcess", "a:a", False)
    assert daemon.calls[-1] == stop
    daemon.set("a", ProcessState.STOPPED)
    await daemon.looked()
    daemon.pass_time(20)
    passed[0] += 20
    await daemon.looked()
    assert start not in daemon.calls
    daemon.pass_time(20)
    passed[0] += 20
    await daemon.looked()
    assert daemon.calls[-1] == start
    for _ in range(2):
        daemon.restart("a")
        await daemon.looked()
    daemon.restart("a")
    assert await run.outcome() == Success(["fail", "stop"])


@pytest.mark.usefixtures("place")
async def test_pause_is_saved_before_the_program_is_stopped(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path
) -> None:
    """Otherwise, after a restart in between, the stopped program would count as done."""
    trigger, attempt = watching(two(tmp_path, policy=CRASHES | {"crash_delay": 2})), new_attempt()
    run = runs.start(trigger, attempt)
    await daemon.looked()
    before_the_stop = list[dict[str, Any]]()
    multicall = daemon.multicall

    async def killed(calls: Any) -> Any:
        before_the_stop.append(await kept(run))
        await multicall(calls)
        raise asyncio.CancelledError  # the process dies right after the call

    daemon.multicall = killed  # type: ignore[method-assign]
    daemon.restart("a")
    await daemon.looked()
    daemon.restart("a")
    await eventually(lambda: before_the_stop, "the stop")
    assert before_the_stop[0]["programs"]["a:a"]["paused_until"] is not None
    await run.kill_process()
    daemon.multicall = multicall  # type: ignore[method-assign]
    daemon.set("a", ProcessState.STOPPED)
    daemon.set("b", ProcessState.EXITED, 0)
    again = runs.start(trigger, attempt)
    await daemon.looked()
    assert not again.task.done(), "a is paused"
    daemon.pass_time(40)
    await eventually(lambda: daemon.calls[-1][0] == "supervisor.startProcess", "the start")
    daemon.set("a", ProcessState.EXITED, 0, start=daemon.programs["a"]["now"])
    assert await again.outcome() == Success(["pass", "stop"])


@pytest.mark.usefixtures("place")
async def test_restarts_before_a_restart_of_the_triggerer_count_after_it(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path
) -> None:
    trigger, attempt = watching(two(tmp_path, policy=CRASHES)), new_attempt()
    run = runs.start(trigger, attempt)
    await daemon.looked()
    daemon.restart("a")
    await daemon.looked()
    await run.kill_process()
    daemon.restart("a")
    runs.start(trigger, attempt)
    await eventually(lambda: daemon.calls[-1] == ("supervisor.stopProcess", "a:a", False), "the pause")


async def ended_with_a_retry(runs: Runs, daemon: FakeSupervisord, cfg: Any, first: Attempt) -> None:
    """Let a program crash twice, then exit with the code for a retry."""
    run = runs.start(watching(cfg), first)
    await daemon.looked()
    for _ in range(2):
        daemon.restart("a")
        await daemon.looked()
    daemon.set("a", ProcessState.STOPPED)
    daemon.set("b", ProcessState.EXITED, 5)
    assert isinstance(await run.outcome(), Failure)


@pytest.mark.usefixtures("place")
async def test_pause_holds_for_the_next_try(runs: Runs, daemon: FakeSupervisord, tmp_path: Path) -> None:
    cfg, first = two(tmp_path, policy=CRASHES | {"exit_codes": {5: "retry"}}), new_attempt()
    await ended_with_a_retry(runs, daemon, cfg, first)
    daemon.set("a", ProcessState.EXITED, 5)  # it ends before it is stopped
    again, before = runs.start(watching(cfg), new_attempt(2, of=first)), len(daemon.calls)
    start = ("supervisor.startProcess", "b:b", False)
    await eventually(lambda: start in daemon.calls[before:], "the start")
    daemon.set("b", ProcessState.EXITED, 0, start=daemon.programs["b"]["now"])
    await daemon.looked()
    assert not again.task.done()
    assert ("supervisor.startProcess", "a:a", False) not in daemon.calls


@pytest.mark.usefixtures("place")
async def test_pause_does_not_hold_for_the_next_run(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path
) -> None:
    cfg = two(tmp_path, policy=CRASHES | {"exit_codes": {5: "retry"}})
    await ended_with_a_retry(runs, daemon, cfg, new_attempt())
    daemon.set("b", ProcessState.EXITED, 0, start=daemon.programs["b"]["now"])  # restarted by the start steps
    assert await runs.start(watching(cfg), new_attempt()).outcome() == Success(["pass", "stop"])


@pytest.mark.usefixtures("place")
async def test_refused_pause_is_no_failure_and_is_requested_again(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.refusals["supervisor.stopProcess"] = SupervisordRefused("no", 10)
    run = runs.start(watching(two(tmp_path, policy=CRASHES)))
    await daemon.looked()
    for _ in range(2):
        daemon.restart("a")
        await daemon.looked()
    await daemon.looked()
    assert daemon.calls.count(("supervisor.stopProcess", "a:a", False)) >= 2
    assert not run.task.done()
    assert "Could not stop a:a for a pause, or start it after a pause: no" in caplog.text
    assert caplog.text.count("a:a is in a crash loop") == 1
