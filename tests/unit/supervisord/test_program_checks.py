"""Readiness, liveness and order of programs: the fields, and the crash history of a restart."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from unit.supervisord.support import START, config, process

from deferrable_ops.checks import FileCheck, HttpCheck, TcpCheck
from deferrable_ops.exceptions import ConfigurationError, InputError
from deferrable_ops.supervisord import (
    LogLine,
    ProgramConfiguration,
    SupervisorAirflowConfiguration,
    SupervisorSSHAirflowConfiguration,
)
from deferrable_ops.supervisord.crash_loops import CrashHistory
from deferrable_ops.supervisord.evaluation import evaluate, histories_with_unhealthy
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


def text_of(cfg: SupervisorAirflowConfiguration) -> str:
    return str(json.loads(serialize_configuration(cfg))["configuration"]["program"])


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


def test_unused_fields_are_in_no_stored_configuration() -> None:
    """A release that does not know the fields can read the configuration."""
    names = ("ready", "ready_timeout", "after", "healthy", "failure_threshold")
    written = config().with_secrets()["program"]["test"]
    assert not set(names) & written.keys()
    assert not any(name in text_of(config()) for name in names)


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


@pytest.mark.parametrize("check", [TcpCheck("localhost", 1), HttpCheck("http://127.0.0.1:80/")])
def test_check_of_localhost_is_refused_over_ssh(check: Any) -> None:
    program = {"a": {"command": "x", "healthy": check}}
    with pytest.raises(ValueError, match="healthy of the program 'a' is a check of localhost"):
        SupervisorSSHAirflowConfiguration(working_dir="/data/s", program=program)
    assert config(program=program)


def test_event_listener_has_no_checks() -> None:
    listener = {"command": "x", "events": "TICK_5", "after": ["test"]}
    with pytest.raises(ValueError, match="after cannot be used for an event listener"):
        config(eventlistener={"watch": listener})


def test_secrets_of_a_check_are_encrypted_and_masked() -> None:
    check = HttpCheck("http://ann:s3cret-one@web/?key=s3cret-two", headers={"X-Key": "s3cret-three"})
    cfg = config(program={"a": {"command": "x", "healthy": check}})
    try:
        text = serialize_configuration(cfg)
    except ConfigurationError as missing:  # pragma: no cover
        pytest.fail(str(missing))
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


class Unhealthy:
    """A program whose liveness check fails, and the evaluations of it."""

    def __init__(self, **policy: Any) -> None:
        healthy = TcpCheck("web", 1, timeout=1)
        program = {"command": "x", "healthy": healthy, "ready_timeout": 1, "startsecs": 0, "stopwaitsecs": 1}
        self.cfg = config(program={"test": program}, policy=policy, check_interval=1)
        self.now, self.start, self.pid = START, START, 1
        self.histories: dict[str, CrashHistory] = {}
        self.look()

    def process(self, state: ProcessState = ProcessState.RUNNING) -> Process:
        pid = self.pid if state in (ProcessState.RUNNING, ProcessState.STOPPING) else 0
        return process(state, start=self.start, now=self.now, pid=pid)

    def look(self, state: ProcessState = ProcessState.RUNNING) -> Any:
        """Save and load the histories, as after a restart of the triggerer, and evaluate the process a second later."""
        self.now += 1
        saved = {name: json.loads(json.dumps(one.to_json())) for name, one in self.histories.items()}
        loaded = {name: CrashHistory.from_json(data) for name, data in saved.items()}
        found = evaluate(self.cfg, [self.process(state)], loaded)
        self.histories = found.histories
        return found.verdict.action or found.steps.get("test:test")

    def fail(self) -> Any:
        self.now += 5
        self.histories = histories_with_unhealthy([self.process()], self.histories, {"test:test": self.pid})
        return self.look()

    def restarted(self) -> None:
        self.now += 2
        self.start, self.pid = self.now, self.pid + 1


def test_unhealthy_process_is_stopped_and_then_started() -> None:
    web = Unhealthy()
    assert web.fail() == "pause"
    assert web.look() == "pause", "the call may have failed"
    assert web.look(ProcessState.STOPPING) is None
    assert web.look(ProcessState.STOPPED) == "resume"
    assert web.look(ProcessState.STOPPED) == "resume"
    web.restarted()
    assert web.look() is None
    history = web.histories["test:test"]
    assert (history.paused_until, history.unhealthy_pid, len(history.restarts)) == (None, 0, 1)


def test_process_that_was_restarted_meanwhile_is_not_restarted() -> None:
    web = Unhealthy()
    found = histories_with_unhealthy([web.process()], web.histories, {"test:test": 99})
    assert found == web.histories


def test_restarts_of_an_unhealthy_program_become_a_crash_loop_and_are_given_up() -> None:
    web = Unhealthy(crash_restarts=2, crash_give_up=0, crash_window=1, otherwise="fail")
    assert web.fail() == "pause"
    web.look(ProcessState.STOPPED)
    web.restarted()
    web.look()
    assert web.fail() == "fail", "crash_window is extended to the time of two restarts"


def test_first_restart_of_an_old_process_can_be_a_crash_loop() -> None:
    web = Unhealthy(crash_restarts=1, crash_delay=30)
    web.now += 10_000
    assert web.fail() == "pause"
    history = web.histories["test:test"]
    assert (history.pauses, history.paused_until) == (1, web.now + 30)
