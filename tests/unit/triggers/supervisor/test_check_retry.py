"""Policy ``retry``: the next attempt of the check restarts the program once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from unit.triggers.supervisor.fakes import FakeHost, FakeSupervisord, two, watching
from unit.triggers.support import Runs, eventually, new_attempt

from deferrable_ops.exceptions import SupervisordRefused, SupervisordUnavailable
from deferrable_ops.outcome import Failure, Success
from deferrable_ops.supervisord import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.processes import ProcessState
from deferrable_ops.triggers.supervisor import check_trigger

RETRY = {"exit_codes": {0: "success", 75: "retry"}, "otherwise": "fail"}
FAILED = Failure("b:b exited with 75")


class Starting(FakeSupervisord):
    """A supervisord whose processes end right after their start, as startsecs=0 allows."""

    def __init__(self) -> None:
        super().__init__()
        self.next_state, self.next_code = ProcessState.EXITED, 75
        self.answered = asyncio.Event()
        self.answered.set()
        self.set("a", ProcessState.EXITED, 0)
        self.set("b", ProcessState.EXITED, 75)

    @property
    def started(self) -> list[str]:
        return [call[1] for call in self.calls if call[0] == "supervisor.startProcess"]

    async def multicall(self, calls: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        answers = await super().multicall(calls)
        for (_, (name, _)), answer in zip(calls, answers, strict=True):
            if answer is True:
                own = self.programs[name.partition(":")[0]]
                self.set(own["name"], self.next_state, self.next_code, start=own["now"], pid=own["pid"] + 1)
        await self.answered.wait()
        return answers


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Starting:
    daemon = Starting()
    monkeypatch.setattr(check_trigger, "open_host", FakeHost(daemon).open_host)
    return daemon


@pytest.fixture
def cfg(tmp_path: Path) -> SupervisorAirflowConfiguration:
    return two(tmp_path, policy=RETRY)


async def test_each_retry_restarts_the_program_once_and_uses_its_new_end(
    runs: Runs, daemon: Starting, cfg: SupervisorAirflowConfiguration, caplog: pytest.LogCaptureFixture
) -> None:
    first = new_attempt()
    assert await runs.start(watching(cfg), first).outcome() == FAILED
    assert daemon.started == [], "the first attempt restarts nothing"
    for number in (2, 3, 4, 5):
        daemon.pass_time(5)
        assert await runs.start(watching(cfg), new_attempt(number, of=first)).outcome() == FAILED
        assert daemon.started == ["b:b"] * (number - 1), "a has ended well and is not restarted"
    daemon.next_code = 0
    daemon.pass_time(5)
    outcome = await runs.start(watching(cfg), new_attempt(6, of=first)).outcome()
    assert outcome == Success(["pass", "stop"])
    assert "crash loop" not in caplog.text, "four starts within a minute were this task's own"


async def test_next_run_starts_nothing_for_the_run_before(
    runs: Runs, daemon: Starting, cfg: SupervisorAirflowConfiguration
) -> None:
    for _ in range(2):
        assert await runs.start(watching(cfg), new_attempt()).outcome() == FAILED
    assert daemon.started == []


@pytest.mark.parametrize("is_told", [True, False])
async def test_triggerer_that_is_killed_after_the_start_starts_nothing_twice(
    runs: Runs, daemon: Starting, cfg: SupervisorAirflowConfiguration, is_told: bool
) -> None:
    first = new_attempt()
    assert await runs.start(watching(cfg), first).outcome() == FAILED
    trigger, second = watching(cfg), new_attempt(2, of=first)
    daemon.answered.clear()  # supervisord has started it, but has not answered yet
    daemon.next_state = ProcessState.RUNNING if is_told else ProcessState.EXITED
    killed = runs.start(trigger, second)
    await eventually(lambda: daemon.started, "the start")
    if is_told:
        daemon.answered.set()
        await daemon.looked()
    await killed.kill_process()
    daemon.answered.set()
    daemon.pass_time(5)
    daemon.set("b", ProcessState.EXITED, 75)
    assert await runs.start(trigger, second).outcome() == FAILED
    assert daemon.started == ["b:b"]


async def test_restart_waits_until_its_start_time_differs(
    runs: Runs, daemon: Starting, cfg: SupervisorAirflowConfiguration
) -> None:
    daemon.set("b", ProcessState.EXITED, 75, start=daemon.programs["b"]["now"])
    first = new_attempt()
    assert await runs.start(watching(cfg), first).outcome() == FAILED
    run = runs.start(watching(cfg), new_attempt(2, of=first))
    await daemon.looked()
    await daemon.looked()
    assert daemon.started == []
    assert not run.task.done()
    daemon.pass_time(1)
    assert await run.outcome() == FAILED
    assert daemon.started == ["b:b"]


async def test_reading_before_the_restart_is_not_evaluated(
    runs: Runs, daemon: Starting, cfg: SupervisorAirflowConfiguration, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = new_attempt()
    assert await runs.start(watching(cfg), first).outcome() == FAILED
    monkeypatch.setattr(daemon, "set", lambda *_, **__: None)  # its readings do not show the start yet
    run = runs.start(watching(cfg), new_attempt(2, of=first))
    await eventually(lambda: daemon.started, "the start")
    await daemon.looked()
    await daemon.looked()
    assert not run.task.done()
    daemon.programs["b"] |= {"exitstatus": 0, "start": daemon.programs["b"]["now"]}
    assert await run.outcome() == Success(["pass", "stop"])
    assert daemon.started == ["b:b"]


async def test_program_that_cannot_be_restarted_fails_the_retry(
    runs: Runs, daemon: Starting, cfg: SupervisorAirflowConfiguration, caplog: pytest.LogCaptureFixture
) -> None:
    first = new_attempt()
    assert await runs.start(watching(cfg), first).outcome() == FAILED
    daemon.refusals["supervisor.startProcess"] = SupervisordRefused("no such file", 20)
    assert await runs.start(watching(cfg), new_attempt(2, of=first)).outcome() == FAILED
    assert daemon.started == ["b:b"]
    assert "b:b exited with 75 and could not be restarted: no such file" in caplog.text


async def test_unanswered_restart_is_requested_again(
    runs: Runs, daemon: Starting, cfg: SupervisorAirflowConfiguration, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, asked = new_attempt(), list[Any]()
    assert await runs.start(watching(cfg), first).outcome() == FAILED
    multicall = daemon.multicall

    async def silent_once(calls: Any) -> Any:
        asked.append(calls)
        if len(asked) == 1:
            raise SupervisordUnavailable("silence")
        return await multicall(calls)

    monkeypatch.setattr(daemon, "multicall", silent_once)
    assert await runs.start(watching(cfg), new_attempt(2, of=first)).outcome() == FAILED
    assert daemon.started == ["b:b"]
    assert len(asked) == 2


async def test_retry_resets_the_pauses_of_a_given_up_program(
    runs: Runs, daemon: Starting, tmp_path: Path
) -> None:
    policy = {"otherwise": "retry", "crash_restarts": 2, "crash_give_up": 0}
    program = {name: {"command": "x", "autorestart": True} for name in ("a", "b")}
    cfg, first = two(tmp_path, policy=policy, program=program), new_attempt()
    run = runs.start(watching(cfg), first)
    await daemon.looked()
    daemon.restart("a")
    await daemon.looked()
    daemon.restart("a")
    assert isinstance(await run.outcome(), Failure)
    again = runs.start(watching(cfg), new_attempt(2, of=first))
    await daemon.looked()
    daemon.restart("a")
    await daemon.looked()
    assert not again.task.done(), "within the window of the last crash loop"
    daemon.restart("a")
    outcome = await again.outcome()
    assert isinstance(outcome, Failure)
    assert "a:a is in a crash loop (2 restarts" in outcome.reason
    assert daemon.started == [], "supervisord restarts it"
