"""Readiness, liveness and order of programs: the fields, and the crash history of a restart."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from unit.supervisord.support import START, config, process

from deferrable_ops.checks import FileCheck, HttpCheck, TcpCheck
from deferrable_ops.exceptions import InputError
from deferrable_ops.supervisord import (
    LogLine,
    ProgramConfiguration,
    SupervisorSSHAirflowConfiguration,
)
from deferrable_ops.supervisord.crash_loops import CrashHistory, begin_restart
from deferrable_ops.supervisord.evaluation import evaluate
from deferrable_ops.supervisord.processes import Process, ProcessState
from deferrable_ops.supervisord.program_sections import start_order
from deferrable_ops.triggers.supervisor.configuration import (
    load_configuration,
    mask_secrets,
    serialize_configuration,
    step_timeout,
)

HEALTH = HttpCheck("http://web.internal:8080/health", expected_status=[200, 204])
CHECKED = {
    "db": {"command": "x", "ready": TcpCheck("db.internal", 5432)},
    "cache": {"command": "x", "ready": LogLine("warm-up done"), "ready_timeout": 90},
    "web": {"command": "x", "after": ["db", "cache"], "ready": HEALTH, "healthy": HEALTH},
}


def test_checks_survive_the_way_to_the_triggerer_without_their_defaults() -> None:
    cfg = config(program=CHECKED)
    loaded = load_configuration(serialize_configuration(cfg))
    assert loaded.with_secrets() == cfg.with_secrets()
    assert loaded.program["db"].ready == {"tcp": {"host": "db.internal", "port": 5432}}
    assert loaded.program["cache"].ready == {"log": {"contains": "warm-up done"}}
    assert loaded.program["web"].healthy == {
        "http": {"url": "http://web.internal:8080/health", "expected_status": [200, 204]}
    }
    assert loaded.program["web"].after == ["db", "cache"]
    assert loaded.program["cache"].ready_timeout == timedelta(seconds=90)


def test_dict_gives_the_same_as_the_check() -> None:
    ready: dict[str, Any] = {"tcp": {"host": "db.internal", "port": 5432}}
    written = config(program={"db": {"command": "x", "ready": ready}})
    assert written == config(program={"db": {"command": "x", "ready": TcpCheck("db.internal", 5432)}})


def test_supervisords_file_does_not_contain_the_fields() -> None:
    plain = {name: {"command": "x"} for name in CHECKED}
    assert config(program=CHECKED).to_cfg() == config(program=plain).to_cfg()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"after": "c"}, "after"),
        ({"after": ["dbb"]}, "'dbb', which is not the name of a program"),
        ({"after": ["a"]}, "wait for each other: a -> a"),
        ({"after": ["b"]}, "wait for each other: (a -> b -> a|b -> a -> b)"),
        ({"after": ["c"], "autostart": True}, "autostart"),
        ({"ready": FileCheck("/x")}, "is not a check of a program"),
        ({"ready": "db:5432"}, "is not a check of a program"),
        ({"ready": {"tcp": {}, "http": {}}}, "is not a check of a program"),
        ({"ready": TcpCheck("db", 1, on_fail="stop")}, "on_fail, which has no effect"),
        ({"ready": TcpCheck("{{ var.value.db }}", 1)}, "template in host"),
        ({"ready": {"log": {"contains": "a\nb"}}}, "in one line"),
        ({"ready": {"log": {"text": "a"}}}, "other arguments"),
        ({"ready": LogLine("a"), "stdout_logfile": "NONE", "redirect_stderr": True}, "has no log file"),
        ({"healthy": LogLine("a")}, "healthy is a LogLine"),
        ({"healthy": TcpCheck("db", 1), "failure_threshold": 0}, "failure_threshold"),
        ({"ready_timeout": 0}, "ready_timeout"),
    ],
)
def test_wrong_fields_are_refused_when_the_dag_is_parsed(fields: dict[str, Any], message: str) -> None:
    other = {"command": "x", "after": ["a"]}
    with pytest.raises(ValueError, match=message):
        config(program={"a": {"command": "x"} | fields, "b": other, "c": {"command": "x"}})


@pytest.mark.parametrize(
    "check, message",
    [
        ({"tcp": {"host": "db", "port": 0}}, "ready of the program 'a': port=0"),
        ({"tcp": {"host": "db"}}, "ready of the program 'a': tcp: missing .*'port'"),
        ({"http": {"url": "db"}}, "ready of the program 'a': url="),
        ({"http": {"url": "http://db", "verify": False}}, "unexpected keyword argument 'verify'"),
    ],
)
def test_wrong_arguments_of_a_check_are_refused_when_the_dag_is_parsed(check: Any, message: str) -> None:
    cfg = config(program={"a": {"command": "x", "ready": check}})
    with pytest.raises(InputError, match=message):
        serialize_configuration(cfg)


@pytest.mark.parametrize(
    "check", [TcpCheck("localhost", 1), TcpCheck("0.0.0.0", 1), HttpCheck("http://[::1]:80/")]
)
def test_check_of_localhost_is_refused_over_ssh(check: Any) -> None:
    program: Any = {"a": {"command": "x", "healthy": check}}
    with pytest.raises(ValueError, match=r"healthy of the program 'a' is a check of .*, but the Triggerer"):
        SupervisorSSHAirflowConfiguration(working_dir=Path("/data/s"), program=program)
    assert config(program=program)


def test_event_listener_has_no_checks() -> None:
    listener = {"command": "x", "events": "TICK_5", "after": ["test"]}
    with pytest.raises(ValueError, match="after cannot be used for an event listener"):
        config(eventlistener={"watch": listener})


def test_secrets_of_a_check_are_encrypted_and_masked() -> None:
    check = HttpCheck("http://ann:s3cret-one@web/?key=s3cret-two", headers={"X-Key": "s3cret-three"})
    cfg = config(program={"a": {"command": "x", "healthy": check}})
    text = serialize_configuration(cfg)
    assert text.startswith("sealed:")
    assert "s3cret" not in repr(cfg)
    assert "s3cret" not in mask_secrets("s3cret-one key=s3cret-two s3cret-three", cfg)


def test_order_puts_each_program_behind_those_it_waits_for() -> None:
    after: dict[str, list[str]] = {"d": ["b", "c"], "b": ["a"], "c": ["a"], "a": []}
    programs = {name: ProgramConfiguration(command="x", after=after[name]) for name in after}
    order = start_order(programs)
    assert all(order.index(other) < order.index(name) for name in after for other in after[name])


def test_step_timeout_counts_the_longest_way_to_a_ready_program() -> None:
    times = {"startsecs": 0, "startretries": 0}
    chain = {
        "a": {"command": "x", "ready": TcpCheck("a", 1), "ready_timeout": 100, **times},
        "b": {"command": "x", "ready": TcpCheck("b", 1), "ready_timeout": 20, "after": ["a"], **times},
        "c": {"command": "x", "ready": TcpCheck("c", 1), "ready_timeout": 70, **times},
    }
    plain = {name: {"command": "x", **times} for name in chain}
    for step, more in (("start-programs", 120), ("restart-programs", 120), ("stop-programs", 0)):
        longer = step_timeout(config(program=chain), step)  # type: ignore[arg-type]
        assert longer - step_timeout(config(program=plain), step) == more  # type: ignore[arg-type]


class Restart:
    """A running process, and the evaluations of it. Each evaluation uses histories that were saved and loaded, as after
    a restart of the triggerer.
    """

    def __init__(self, **policy: Any) -> None:
        self.cfg = config(program={"test": {"command": "x"}}, policy=policy)
        self.now, self.start, self.pid = START, START, 1
        self.histories: dict[str, CrashHistory] = {}
        self.look()

    def look(self, state: ProcessState = ProcessState.RUNNING) -> Any:
        self.now += 1
        saved = {name: json.loads(json.dumps(one.to_json())) for name, one in self.histories.items()}
        loaded = {name: CrashHistory.from_json(data) for name, data in saved.items()}
        found = evaluate(self.cfg, [self.process(state)], loaded)
        self.histories = found.histories
        return found.verdict.action or found.steps.get("test:test")

    def begin(self) -> None:
        self.histories = {"test:test": begin_restart(self.histories["test:test"], self.process())}

    def started(self) -> None:
        self.now += 1
        self.start, self.pid = self.now, self.pid + 1

    def process(self, state: ProcessState = ProcessState.RUNNING) -> Process:
        pid = self.pid if state in (ProcessState.RUNNING, ProcessState.STOPPING) else 0
        return process(state, start=self.start, now=self.now, pid=pid)


def test_process_is_stopped_and_then_started() -> None:
    web = Restart()
    web.begin()
    assert web.look() == "pause"
    assert web.look() == "pause", "the call may have failed"
    assert web.look(ProcessState.STOPPING) is None
    assert web.look(ProcessState.STOPPED) == "resume"
    assert web.look(ProcessState.STOPPED) == "resume"
    web.started()
    assert web.look() is None
    assert web.histories["test:test"].paused_until is None


@pytest.mark.parametrize("end", [ProcessState.EXITED, ProcessState.STOPPED])
def test_process_that_ends_at_once_after_its_restart_has_ended(end: ProcessState) -> None:
    web = Restart()
    web.begin()
    web.look()
    web.look(ProcessState.STOPPED)
    web.started()
    web.look(end)
    assert web.look(end) == "success"


def test_process_that_was_restarted_meanwhile_keeps_running() -> None:
    web = Restart()
    web.begin()
    web.started()
    assert web.look() is None
    assert web.look() is None


def test_process_whose_group_is_replaced_while_it_is_stopped_is_started() -> None:
    web = Restart()
    web.begin()
    web.look()
    web.start = 0
    assert web.look(ProcessState.STOPPED) == "resume"


def test_restarts_are_no_crash_loop() -> None:
    web = Restart(crash_restarts=1, crash_window=600, crash_give_up=0, otherwise="fail")
    for _ in range(5):
        web.begin()
        assert web.look() == "pause"
        assert web.look(ProcessState.STOPPED) == "resume"
        web.started()
        assert web.look() is None
    web.started()
    assert web.look() == "fail", "a crash counts"
