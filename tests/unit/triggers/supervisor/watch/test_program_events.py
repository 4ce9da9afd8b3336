"""Which changes of processes are events."""

from __future__ import annotations

from typing import Any

import pytest
from unit.supervisord.support import START, config, process

from deferrable_ops.supervisord.crash_loops import CrashHistory, begin_restart
from deferrable_ops.supervisord.evaluation import evaluate
from deferrable_ops.supervisord.processes import Process, ProcessState
from deferrable_ops.triggers.supervisor.watch.program_events import find_events

CONFIG = config(policy={"crash_restarts": 2, "crash_delay": 30, "crash_give_up": 1})
FIRST = CrashHistory(start=START, pid=42)


def events(before: CrashHistory, now: Process, state: ProcessState | None = None) -> list[tuple[str, str]]:
    histories = {} if before == CrashHistory() else {"test:test": before}
    states = {} if state is None else {"test:test": state}
    found = find_events(CONFIG, histories, states, evaluate(CONFIG, [now], histories))
    assert all(event.program == "test" and event.process == now for event in found)
    return [(event.kind.value, event.reason) for event in found]


def restarted(**changes: Any) -> Process:
    return process(start=START + 50, pid=43, **changes)


def test_first_look_and_no_change_are_no_events() -> None:
    assert events(CrashHistory(), process()) == []
    assert events(FIRST, process()) == []


@pytest.mark.parametrize(
    "before, reason",
    [
        (FIRST, ""),
        (begin_restart(FIRST, process()), "its check healthy= has failed"),
        (CrashHistory(START, 42, (), 1, START + 40), "after a pause"),
    ],
)
def test_restart_is_an_event_with_its_reason(before: CrashHistory, reason: str) -> None:
    assert ("restarted", reason) in events(before, restarted())


def test_crash_loop_is_three_events_with_the_pause() -> None:
    before = CrashHistory(START, 42, (START + 30,))
    assert events(before, restarted()) == [
        ("restarted", ""),
        ("crash_loop", "2 restarts within 60 s"),
        ("paused", "stopped for 30 s (pause number 1)"),
    ]


def test_crash_loop_after_the_last_pause_is_given_up_once() -> None:
    before = CrashHistory(START, 42, (START + 30,), pauses=1)
    found = events(before, restarted())
    assert found[1:] == [
        ("crash_loop", "2 restarts within 60 s"),
        ("given_up", "2 restarts within 60 s, after 1 pauses"),
    ]
    now = CrashHistory(START + 50, 43, (START + 30, START + 50), pauses=1)
    assert events(now, restarted()) == []


def test_program_that_supervisord_cannot_start_is_given_up_once() -> None:
    fatal = process(ProcessState.FATAL, start=START + 50, spawnerr="Exited too quickly")
    given_up = [("given_up", "is FATAL: Exited too quickly")]
    assert events(CrashHistory(), fatal) == given_up
    assert events(FIRST, fatal, ProcessState.RUNNING) == given_up
    assert events(FIRST, fatal, ProcessState.FATAL) == []
