"""The XComs that show the states of a real supervisord's processes while they are watched, and after a failure."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from integration.supervisor.support import SLEEP, Place
from unit.triggers.supervisor.fakes import watching
from unit.triggers.support import Runs, eventually

from deferrable_ops.outcome import Success
from deferrable_ops.supervisord import SupervisorAirflowConfiguration
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.supervisor.check_trigger import SupervisorCheckTrigger
from deferrable_ops.triggers.supervisor.configuration import serialize_configuration
from deferrable_ops.triggers.supervisor.watch.process_xcoms import ProcessXComs

STATUS, FAILURE = "supervisor_process_status", "supervisor_failure"
GO = "while [ ! -e go ]; do sleep 0.02; done; "


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """All XComs that triggers push, in their order."""
    pushed = list[tuple[str, Any]]()

    async def push_xcom(_trigger: TaskTrigger, key: str, value: Any) -> None:
        pushed.append((key, value))

    monkeypatch.setattr(TaskTrigger, "push_xcom", push_xcom)
    return pushed


def states(value: list[dict[str, Any]]) -> dict[str, str]:
    return {row["name"]: row["state"] for row in value}


async def test_status_is_pushed_at_first_and_at_the_end_and_the_failure_with_its_last_lines(
    place: Place, runs: Runs, pushed: list[tuple[str, Any]]
) -> None:
    lines = "; ".join(f"echo line {number} >&2" for number in range(30))
    cfg = place.cfg(
        program={
            "a": {"command": SLEEP},
            "b": {
                "command": f"sh -c '{GO}{lines}; echo secret-value >&2; exit 7'",
                "environment": {"X": "secret-value"},
            },
        },
        check_interval=0.05,
    )
    await place.run_steps(cfg, "configure-supervisor", "start-supervisor", "start-programs")
    run = runs.start(watching(cfg))
    await eventually(lambda: pushed, "the first status")
    assert pushed[0][0] == STATUS
    assert states(pushed[0][1]) == {"a": "RUNNING", "b": "RUNNING"}
    # A change is not pushed again at once, but the end is.
    (place.folder / "s" / "b" / "go").touch()
    assert await run.outcome() == Success(["fail", "retrigger"])
    assert [key for key, _ in pushed] == [STATUS, STATUS, FAILURE]
    assert states(pushed[1][1]) == {"a": "RUNNING", "b": "EXITED"}
    [failure] = pushed[2][1]
    assert (failure["program"], failure["state"], failure["exitstatus"]) == ("b", "EXITED", 7)
    assert failure["last_lines"] == [*(f"line {number}" for number in range(11, 30)), "***"]


async def test_status_is_throttled(
    place: Place, runs: Runs, pushed: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that restarts ten times a second changes its state at each poll."""
    monkeypatch.setattr(ProcessXComs, "push_every", 0.5)
    program = {"command": "sleep 0.05", "autorestart": True, "startsecs": 0}
    cfg = place.cfg(program={"a": program}, policy={"crash_restarts": 1000}, check_interval=0.02)
    await place.run_steps(cfg, "configure-supervisor", "start-supervisor", "start-programs")
    loop = asyncio.get_running_loop()
    run = runs.start(watching(cfg))
    await eventually(lambda: pushed, "the first status")
    began = loop.time()
    await eventually(lambda: len(pushed) >= 4, "three more")
    assert loop.time() - began >= 1.4
    assert {key for key, _ in pushed} == {STATUS}
    await run.kill_process()


async def test_lost_supervisord_is_a_failure_with_unknown_states(
    place: Place, runs: Runs, pushed: list[tuple[str, Any]]
) -> None:
    cfg = place.cfg(check_interval=0.05, program={"a": {"command": SLEEP}})
    await place.run_steps(cfg, "configure-supervisor", "start-supervisor", "start-programs")
    run = runs.start(watching(cfg))
    await eventually(lambda: pushed, "the first status")
    await asyncio.to_thread(cfg.kill)
    assert await run.outcome() == Success(["fail", "retrigger"])
    assert states(dict(pushed)[STATUS]) == states(dict(pushed)[FAILURE]) == {"a": "UNKNOWN"}


async def test_step_that_cannot_start_a_program_pushes_the_failure(
    place: Place, pushed: list[tuple[str, Any]]
) -> None:
    cfg = place.cfg(
        program={"a": {"command": "sh -c 'echo no licence; exit 1'"}},
        policy={"otherwise": "fail"},
        startsecs=1,
        startretries=0,
    )
    await place.run_steps(cfg, "configure-supervisor", "start-supervisor")
    failure = await place.fail_step(cfg, "start-programs")
    assert "FATAL" in failure.reason
    [(key, [row])] = pushed
    assert key == FAILURE
    assert (row["name"], row["state"], row["last_lines"]) == ("a", "FATAL", ["no licence"])


async def test_xcom_that_cannot_be_pushed_does_not_change_the_outcome(
    place: Place, runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_trigger: TaskTrigger, _key: str, _value: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(TaskTrigger, "push_xcom", fail)
    cfg = place.cfg(program={"a": {"command": "true"}}, check_interval=0.05)
    await place.run_steps(cfg, "configure-supervisor", "start-supervisor", "start-programs")
    assert await runs.start(watching(cfg)).outcome() == Success(["pass", "stop"])
    assert f"Could not push the XCom '{STATUS}': TimeoutError" in caplog.text


def test_xcoms_of_an_earlier_attempt_are_cleared() -> None:
    cfg = SupervisorAirflowConfiguration(working_dir=Path("/data"), program={"a": {"command": "true"}})
    cleared = SupervisorCheckTrigger(configuration=serialize_configuration(cfg)).xcoms_to_clear
    assert {STATUS, FAILURE} <= set(cleared)
