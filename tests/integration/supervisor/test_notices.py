"""Notices of program events, with a real supervisord."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest
from integration.supervisor.support import BEGIN, SLEEP, Place
from unit.triggers.supervisor.fakes import watching
from unit.triggers.supervisor.recorder import Recorder, received
from unit.triggers.support import Runs, eventually

from deferrable_ops.checks import TcpCheck
from deferrable_ops.outcome import Success
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.supervisor.watch.notices import Notices

pytest.importorskip("supervisor.supervisord")

release = threading.Event()


async def fail() -> None:
    raise RuntimeError("hook-token")


async def hang(context: Any) -> None:
    await asyncio.Event().wait()


async def block() -> None:
    release.wait(60)


RECORDER = {
    "path": f"{Recorder.__module__}.Recorder",
    "kwargs": {"text": "{{ event.kind }} of {{ event.program }}"},
}
# Nothing listens on this port.
CLOSED = TcpCheck("127.0.0.1", 1)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    monkeypatch.setattr(TaskTrigger, "log", logging.getLogger("task"))
    caplog.set_level(logging.INFO, "task")
    received.clear()
    release.clear()
    yield
    release.set()


def crashing(place: Place, *notifiers: Any, **fields: Any) -> Any:
    lines = "echo secret-value; echo last; sleep 0.2; exit 3"
    program = {"command": f"sh -c '{lines}'", "autorestart": True, "environment": {"X": "secret-value"}}
    policy = {"crash_restarts": 2, "crash_delay": 1, "crash_give_up": 1, "otherwise": "fail"}
    given = {"program": {"a": program}, "policy": policy, "check_interval": 0.05, **fields}
    return place.cfg(on_program_event=list(notifiers), **given)


async def test_notices_of_a_crash_loop_have_exit_code_and_masked_last_lines(place: Place, runs: Runs) -> None:
    cfg = crashing(place, RECORDER)
    await place.run_steps(cfg, *BEGIN)
    assert await runs.start(watching(cfg)).outcome() == Success(["fail", "stop"])
    texts = sorted(text for text, _ in received)
    assert texts == ["crash_loop of a", "given_up of a", "paused of a", "restarted of a"], "once, throttled"
    for _, event in received:
        assert (event["name"], event["exitstatus"]) == ("a", 3)
        assert event["last_lines"][-2:] == ["***", "last"]


async def test_notifiers_that_fail_hang_or_block_do_not_change_the_outcome(
    place: Place, runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Notices, "finish_timeout", 0.2)
    names = (fail, hang, block)
    cfg = crashing(
        place, *(f"{__name__}.{one.__name__}" for one in names), "no_such_package.Notifier", RECORDER
    )
    await place.run_steps(cfg, *BEGIN)
    assert await runs.start(watching(cfg)).outcome() == Success(["fail", "stop"])
    assert f"Could not send a notice with {__name__}.fail (RuntimeError); the task continues" in caplog.text
    assert "no_such_package.Notifier (ModuleNotFoundError)" in caplog.text
    assert "were not sent in time" in caplog.text
    assert "hook-token" not in caplog.text
    assert received, "the other notifier was called"


async def test_program_that_is_not_healthy_is_not_ready_and_restarted(place: Place, runs: Runs) -> None:
    program = {"command": SLEEP, "healthy": CLOSED, "failure_threshold": 2, "ready_timeout": 0.1}
    cfg = place.cfg(program={"a": program}, check_interval=0.1, on_program_event=[RECORDER])
    await place.run_steps(cfg, *BEGIN)
    runs.start(watching(cfg))
    await eventually(lambda: len(received) >= 2, "both notices")
    assert [text for text, _ in received[:2]] == ["not_ready of a", "restarted of a"]
    assert "127.0.0.1" in received[0][1]["reason"]
    assert received[1][1]["reason"] == "its check healthy= has failed"
    assert received[1][1]["exitstatus"] == -1


@pytest.mark.parametrize(
    "program, kind",
    [
        ({"command": SLEEP, "ready": CLOSED, "ready_timeout": 0.1}, "not_ready"),
        ({"command": "sh -c 'echo last; exit 3'", "startsecs": 1, "startretries": 0}, "given_up"),
    ],
)
async def test_step_sends_a_notice_if_a_program_does_not_start(
    place: Place, program: dict[str, Any], kind: str
) -> None:
    policy = {"otherwise": "fail"}
    cfg = place.cfg(program={"a": program}, policy=policy, on_program_event=[RECORDER])
    await place.run_steps(cfg, *BEGIN[:2])
    await place.fail_step(cfg, "start-programs")
    assert [text for text, _ in received] == [f"{kind} of a"]
    if kind == "given_up":
        assert received[0][1]["exitstatus"] == 3
        assert received[0][1]["last_lines"] == ["last"]
