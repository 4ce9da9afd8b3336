"""Drift: when it is looked for, what is logged, and what is changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.triggers.supervisor.fakes import FakeHost, FakeSupervisord, two, watching
from unit.triggers.support import Runs, eventually

from deferrable_ops.exceptions import SupervisordRefused, SupervisordUnavailable
from deferrable_ops.outcome import Success
from deferrable_ops.supervisord.processes import ProcessState
from deferrable_ops.triggers.supervisor import check_trigger
from deferrable_ops.triggers.supervisor.daemon.drift import Drift, DriftReconciler

RELOAD = ("supervisor.reloadConfig",)


@pytest.fixture
def daemon() -> FakeSupervisord:
    return FakeSupervisord()


@pytest.fixture(autouse=True)
def place(daemon: FakeSupervisord, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    place = FakeHost(daemon)
    monkeypatch.setattr(check_trigger, "open_host", place.open_host)
    return place


def test_drift_describes_the_differences() -> None:
    assert not Drift()
    assert str(Drift(True, False, ("new",), ("a", "b"), ("old",))) == (
        "its configuration file differs; not loaded: new; loaded with another configuration: a, b; "
        "loaded but no longer configured: old"
    )
    assert "cannot read its configuration file" in str(Drift(unreadable=True))


async def test_drift_is_checked_again_after_a_start_with_a_minimum_interval(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DriftReconciler, "min_interval", 3)
    runs.start(watching(two(tmp_path, policy={"crash_restarts": 99})))
    await daemon.looked()
    assert daemon.calls.count(RELOAD) == 1
    for _ in range(3):
        daemon.restart("a")
        await daemon.looked()
    assert daemon.calls.count(RELOAD) == 1, "not for each restart of a crashing program"
    await eventually(lambda: daemon.calls.count(RELOAD) == 2, "the next question")
    for _ in range(12):
        await daemon.looked()
    assert daemon.calls.count(RELOAD) == 2


async def test_drift_is_checked_again_after_no_answer(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DriftReconciler, "min_interval", 0.1)
    call = daemon.call

    async def silent(method: str, *arguments: object) -> object:
        monkeypatch.setattr(daemon, "call", call)
        raise SupervisordUnavailable("busy")

    monkeypatch.setattr(daemon, "call", silent)
    run = runs.start(watching(two(tmp_path)))
    await eventually(lambda: RELOAD in daemon.calls, "the second question")
    assert not run.task.done()


async def test_changed_file_is_logged_once_and_ends_nothing(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = two(tmp_path)
    cfg.config_path.write_text("another")
    run = runs.start(watching(cfg))
    await daemon.looked()
    assert not run.task.done()
    assert (
        caplog.text.count(
            "supervisord runs another configuration than this task's: its configuration file differs"
        )
        == 1
    )


async def test_drift_fail_ends_the_task_without_a_retrigger(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path
) -> None:
    daemon.differences = ([], ["a"], [])
    assert await runs.start(watching(two(tmp_path, drift="fail"))).outcome() == Success(["fail", "stop"])


async def test_file_that_supervisord_cannot_read_is_drift(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreadable(method: str, *arguments: object) -> object:
        raise SupervisordRefused("CANT_REREAD", 92)

    monkeypatch.setattr(daemon, "call", unreadable)
    assert await runs.start(watching(two(tmp_path, drift="fail"))).outcome() == Success(["fail", "stop"])


async def test_only_running_processes_are_restarted(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path
) -> None:
    daemon.set("b", ProcessState.EXITED, 0)
    daemon.differences = (["new"], ["a", "b"], ["old"])
    runs.start(watching(two(tmp_path, drift="apply")))
    await eventually(lambda: ("supervisor.startProcess", "a:a", False) in daemon.calls, "the start")
    changed = [call for call in daemon.calls if call != RELOAD]
    assert changed[:11] == [
        ("supervisor.stopProcessGroup", "a", False),
        ("supervisor.stopProcessGroup", "b", False),
        ("supervisor.stopProcessGroup", "old", False),
        ("supervisor.removeProcessGroup", "a"),
        ("supervisor.removeProcessGroup", "b"),
        ("supervisor.removeProcessGroup", "old"),
        ("supervisor.addProcessGroup", "a"),
        ("supervisor.addProcessGroup", "b"),
        ("supervisor.addProcessGroup", "new"),
        ("supervisor.startProcessGroup", "new", False),
        ("supervisor.startProcess", "a:a", False),
    ]


async def test_reading_during_a_change_is_not_evaluated(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one task changes supervisord, another would take stopped programs for ended ones."""
    other = runs.start(watching(two(tmp_path, program={"a": {"command": "x"}})))
    await daemon.looked()
    daemon.differences = ([], ["a"], [])
    multicall = daemon.multicall

    async def slow(calls: list[tuple[str, tuple[object, ...]]]) -> list[object]:
        if calls[0][0] == "supervisor.stopProcessGroup":
            daemon.set("a", ProcessState.STOPPED)
            await daemon.looked()
            await daemon.looked()
            daemon.differences = ([], [], [])
        if calls[-1][0] == "supervisor.startProcess":
            daemon.restart("a")
        return await multicall(calls)

    monkeypatch.setattr(daemon, "multicall", slow)
    runs.start(watching(two(tmp_path, program={"a": {"command": "x"}}, drift="apply")))
    await eventually(lambda: daemon.calls[-1][0] == "supervisor.startProcess", "the start")
    await daemon.looked()
    assert not other.task.done()
