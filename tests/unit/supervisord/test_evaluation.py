"""The evaluation of process states: verdicts, crash loops and histories."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.supervisord.support import START, config, info, process

from deferrable_ops.exceptions import InputError
from deferrable_ops.supervisord import Action, ProgramPolicy, crash_loops
from deferrable_ops.supervisord.crash_loops import CrashHistory, CrashLoopStep, update_history
from deferrable_ops.supervisord.evaluation import evaluate
from deferrable_ops.supervisord.processes import Process, ProcessState, overall_verdict, processes_by_program


def verdict(*processes: Process, **fields: Any) -> Action | None:
    return evaluate(config(**fields), processes, {}).verdict.action


@pytest.mark.parametrize(
    "state", [ProcessState.STARTING, ProcessState.RUNNING, ProcessState.BACKOFF, ProcessState.STOPPING]
)
def test_living_program_is_watched_further(state: ProcessState) -> None:
    assert verdict(process(state)) is None


@pytest.mark.parametrize(
    "ended, action",
    [
        (process(ProcessState.EXITED), Action.SUCCESS),
        (process(ProcessState.EXITED, 1), Action.RETRIGGER),
        (process(ProcessState.EXITED, -1), Action.RETRIGGER),
        (process(ProcessState.STOPPED), Action.SUCCESS),
        (process(ProcessState.STOPPED, start=0), Action.RETRIGGER),
        (
            process(ProcessState.FATAL, spawnerr="Exited too quickly (process log may have details)"),
            Action.RETRIGGER,
        ),
        (process(ProcessState.UNKNOWN), Action.RETRIGGER),
        (Process.from_info(info(state=77)), Action.RETRIGGER),
    ],
)
def test_ended_program_is_success_or_failure(ended: Process, action: Action) -> None:
    assert verdict(ended) is action


@pytest.mark.parametrize("action", list(Action))
def test_policy_maps_exit_codes(action: Action) -> None:
    policies = {"test": ProgramPolicy(exit_codes={3: action}, otherwise="fail")}
    assert verdict(process(ProcessState.EXITED, 3), policies=policies) is action
    assert verdict(process(ProcessState.EXITED, 4), policies=policies) is Action.FAIL
    assert verdict(process(ProcessState.EXITED, 0), policies=policies) is Action.SUCCESS


def test_expected_exit_codes_are_a_success() -> None:
    program = {"test": {"command": "x", "exitcodes": [0, 2]}}
    assert verdict(process(ProcessState.EXITED, 2), program=program) is Action.SUCCESS
    assert verdict(process(ProcessState.EXITED, 1), program=program) is Action.RETRIGGER


@pytest.mark.parametrize("autorestart, goes_on", [(True, {0, 1}), ("unexpected", {1}), (False, set())])
def test_program_that_supervisord_restarts_has_not_ended(autorestart: Any, goes_on: set[int]) -> None:
    program = {"test": {"command": "x", "autorestart": autorestart}}
    for code in (0, 1):
        assert (verdict(process(ProcessState.EXITED, code), program=program) is None) == (code in goes_on)
    policy = ProgramPolicy(exit_codes={1: "skip"})
    assert verdict(process(ProcessState.EXITED, 1), program=program, policy=policy) is Action.SKIP


TWO = {"a": {"command": "x"}, "b": {"command": "y"}}
SKIPS = ProgramPolicy(exit_codes={9: "skip", 8: "retry", 7: "fail"})


def two(**exit_codes: int) -> Action | None:
    """Return the action for two programs; those without an exit code are running."""
    processes = [
        process(ProcessState.EXITED, exit_codes[name], name=name, group=name)
        if name in exit_codes
        else process(name=name, group=name)
        for name in TWO
    ]
    return verdict(*processes, program=TWO, policy=SKIPS)


def test_success_needs_all_programs_and_failure_needs_one() -> None:
    assert two(a=0) is None
    assert two(a=9) is None
    assert two(a=0, b=0) is Action.SUCCESS
    assert two(a=9, b=9) is Action.SKIP
    assert two(a=9, b=0) is Action.SUCCESS
    assert two(a=1) is Action.RETRIGGER
    assert two(a=8) is Action.RETRY
    assert two(a=8, b=1) is Action.RETRIGGER
    assert two(a=1, b=7) is Action.FAIL


def test_reason_names_the_programs_that_failed() -> None:
    failed = process(ProcessState.FATAL, name="b", group="b", spawnerr="can't find command 'y'")
    found = evaluate(config(program=TWO), [process(ProcessState.EXITED, name="a", group="a"), failed], {})
    assert found.verdict.reason == "b:b is FATAL: can't find command 'y'"
    killed = evaluate(config(), [process(ProcessState.EXITED, -1)], {})
    assert killed.verdict.reason == "test:test was ended by a signal"


def test_program_missing_in_supervisord_is_a_failure() -> None:
    found = evaluate(config(program=TWO), [process(name="a", group="a")], {})
    assert found.verdict.action is Action.RETRIGGER
    assert found.verdict.reason == "supervisord has 0 of the 1 processes of 'b'"


def test_processes_are_found_in_groups_and_listeners_are_omitted() -> None:
    cfg = config(
        program={
            "a": {
                "command": "x",
                "numprocs": 2,
                "process_name": "%(group_name)s.%(program_name)s_%(process_num)02d",
            },
            "b": {"command": "y", "process_name": "a.b"},
            "c": {"command": "z", "process_name": "on-%(host_node_name)s"},
        },
        group={"g": {"programs": ["a", "b"]}},
        eventlistener={"e": {"command": "w", "events": ["TICK_5"]}},
    )
    known = [("g", "g.a_00"), ("g", "g.a_01"), ("g", "a.b"), ("c", "on-node1"), ("e", "e"), ("g", "axb")]
    processes = [process(group=group, name=name) for group, name in known]
    assert {
        name: [item.full_name for item in found]
        for name, found in processes_by_program(cfg, processes).items()
    } == {
        "a": ["g:g.a_00", "g:g.a_01"],
        "b": ["g:a.b"],
        "c": ["c:on-node1"],
    }


def test_group_may_have_the_name_of_a_program_in_it() -> None:
    cfg = config(program=TWO, group={"a": {"programs": ["a", "b"]}})
    found = processes_by_program(cfg, [process(group="a", name="a"), process(group="a", name="b")])
    assert {name: [item.name for item in own] for name, own in found.items()} == {"a": ["a"], "b": ["b"]}


def test_malformed_process_is_refused() -> None:
    for wrong in ({"name": "x"}, info(pid="?"), info(start=None)):
        with pytest.raises(InputError, match="does not describe a process"):
            Process.from_info(wrong)


POLICY = ProgramPolicy(
    crash_restarts=3, crash_window=60, crash_delay=30, crash_longest_delay=50, crash_give_up=2
)


class Program:
    """A simulated program under supervisord, and its history over several evaluations."""

    def __init__(self) -> None:
        self.now, self.start, self.pid, self.state = START, START, 100, ProcessState.RUNNING
        self.history = CrashHistory()

    def evaluate(self, seconds: int = 0) -> CrashLoopStep:
        self.now += seconds
        seen = process(self.state, start=self.start, now=self.now, pid=self.pid if self.alive else 0)
        self.history, step = update_history(CrashHistory.from_json(self.history.to_json()), seen, POLICY)
        return step

    @property
    def alive(self) -> bool:
        return self.state in (ProcessState.RUNNING, ProcessState.STARTING)

    def restart(self, seconds: int = 5) -> CrashLoopStep:
        self.now += seconds
        self.start, self.pid, self.state = self.now, self.pid + 1, ProcessState.RUNNING
        return self.evaluate()

    def stop(self) -> None:
        self.state = ProcessState.STOPPED


def test_program_that_keeps_running_is_left_alone() -> None:
    program = Program()
    assert {program.evaluate(5) for _ in range(100)} == {CrashLoopStep.NOTHING}
    assert program.history.restarts == ()


def test_pauses_of_a_crash_loop_grow_until_it_is_given_up() -> None:
    program = Program()
    assert program.evaluate() is CrashLoopStep.NOTHING
    delays = []
    for _ in range(POLICY.crash_give_up):
        assert [program.restart() for _ in range(3)] == [
            CrashLoopStep.NOTHING,
            CrashLoopStep.NOTHING,
            CrashLoopStep.PAUSE,
        ]
        assert program.history.paused_until is not None
        delays.append(program.history.paused_until - program.now)
        assert program.evaluate(1) is CrashLoopStep.PAUSE, "it is still running"
        program.stop()
        assert program.evaluate(delays[-1] - 2) is CrashLoopStep.NOTHING
        assert program.evaluate(1) is CrashLoopStep.RESUME
        assert program.evaluate(1) is CrashLoopStep.RESUME, "it was not started yet"
        assert program.restart() is CrashLoopStep.NOTHING
    assert delays == [30, 50]
    assert [program.restart() for _ in range(3)] == [
        CrashLoopStep.NOTHING,
        CrashLoopStep.NOTHING,
        CrashLoopStep.GIVE_UP,
    ]
    assert program.evaluate(1) is CrashLoopStep.GIVE_UP


def test_rare_restarts_are_not_a_crash_loop() -> None:
    program = Program()
    assert CrashLoopStep.PAUSE in {program.restart(21) for _ in range(5)}
    program = Program()
    assert {program.restart(31) for _ in range(50)} == {CrashLoopStep.NOTHING}


def test_program_that_ran_for_the_window_has_a_new_history() -> None:
    program = Program()
    program.evaluate()
    for _ in range(3):
        program.restart()
    program.stop()
    assert program.evaluate(30) is CrashLoopStep.RESUME
    program.restart()
    assert program.history.pauses == 1
    program.evaluate(59)
    assert program.history.pauses == 1
    program.evaluate(1)
    assert program.history == CrashHistory(program.start, program.pid)


def test_two_starts_within_a_second_are_distinguished_by_pid() -> None:
    program = Program()
    program.evaluate()
    program.pid += 1
    program.evaluate()
    assert len(program.history.restarts) == 1


def test_start_retries_of_supervisord_are_not_counted() -> None:
    program = Program()
    program.evaluate()
    for _ in range(10):
        program.now += 1
        program.start = program.now
        for program.state in (ProcessState.STARTING, ProcessState.BACKOFF):
            assert program.evaluate() is CrashLoopStep.NOTHING
    assert program.history.restarts == ()
    program.state = ProcessState.RUNNING
    program.evaluate()
    assert len(program.history.restarts) == 1


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_pause_does_not_depend_on_the_system_time(monkeypatch: pytest.MonkeyPatch, jump: int) -> None:
    clock = [0.0]
    monkeypatch.setattr(crash_loops, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    history = CrashHistory()
    for second in range(4):
        seen = process(ProcessState.RUNNING, start=START + second, now=START + second, pid=100 + second)
        history, step = update_history(history, seen, POLICY)
    assert step is CrashLoopStep.PAUSE
    for clock[0], expected in ((29.0, CrashLoopStep.NOTHING), (30.0, CrashLoopStep.RESUME)):
        stopped = process(ProcessState.STOPPED, start=START + 3, now=START + 3 + jump)
        history, step = update_history(history, stopped, POLICY)
        assert step is expected
    ended = process(ProcessState.EXITED, start=START + 4 + jump, now=START + 5 + jump)
    history, step = update_history(history, ended, POLICY)
    assert (step, history.paused_until) == (CrashLoopStep.NOTHING, None)


def test_program_that_is_fatal_after_its_pause_is_not_resumed_again() -> None:
    program = Program()
    program.evaluate()
    for _ in range(3):
        program.restart()
    program.stop()
    assert program.evaluate(30) is CrashLoopStep.RESUME
    program.now += 1
    program.start, program.state = program.now, ProcessState.FATAL
    assert program.evaluate() is CrashLoopStep.NOTHING
    assert program.history.paused_until is None


def test_program_that_restarted_before_it_was_paused_is_resumed() -> None:
    program = Program()
    program.evaluate()
    for _ in range(3):
        program.restart()
    program.start = program.now + 1
    program.stop()
    assert program.evaluate(30) is CrashLoopStep.RESUME


def test_pause_is_not_an_end_and_giving_up_is() -> None:
    crashing = config(program={"test": {"command": "x", "autorestart": True}}, policy=POLICY)
    histories: dict[str, CrashHistory] = {}
    steps = []
    for restart in range(4):
        seen = process(start=START + restart, now=START + restart, pid=restart + 1)
        found = evaluate(crashing, [seen], histories)
        histories = found.histories
        steps.append(found.steps)
    assert steps == [{}, {}, {}, {"test:test": CrashLoopStep.PAUSE}]
    stopped = process(ProcessState.STOPPED, start=START + 3, now=START + 10)
    assert evaluate(crashing, [stopped], histories).verdict.action is None
    histories["test:test"] = CrashHistory(START, 1, (START + 8, START + 9), POLICY.crash_give_up)
    found = evaluate(crashing, [process(start=START + 10, now=START + 10, pid=9)], histories)
    assert (found.verdict.action, found.steps) == (Action.RETRIGGER, {})
    assert found.verdict.reason.startswith(
        "test:test is in a crash loop (3 restarts within 60 s), again after 2"
    )


@given(
    st.lists(
        st.tuples(st.sampled_from(ProcessState), st.integers(0, 100), st.integers(0, 50), st.integers(0, 3)),
        max_size=30,
    )
)
@settings(deadline=None)
def test_pauses_are_bounded_and_history_survives_json(
    seen: list[tuple[ProcessState, int, int, int]],
) -> None:
    history, now = CrashHistory(), START
    for state, start, passed, pid in seen:
        now += passed
        history, _ = update_history(history, process(state, start=START + start, now=now, pid=pid), POLICY)
        assert CrashHistory.from_json(history.to_json()) == history
        assert len(history.restarts) <= len(seen)
        assert history.pauses <= POLICY.crash_give_up
        if history.paused_until is not None:
            assert history.paused_until - now <= POLICY.crash_longest_delay / timedelta(seconds=1)


def test_history_of_another_version_is_read() -> None:
    assert CrashHistory.from_json({"start": 5, "mood": "good"}) == CrashHistory(start=5)


def test_overall_verdict_needs_no_history() -> None:
    assert overall_verdict(config(), {"test": (process(),)}, {"test": ProgramPolicy()}).action is None


@pytest.mark.parametrize(
    "dead",
    [
        process(ProcessState.FATAL, name="a", group="a"),
        process(ProcessState.EXITED, 3, name="a", group="a"),
        process(ProcessState.STOPPED, start=0, name="a", group="a"),
    ],
)
def test_program_that_a_rolling_update_replaced_ends_the_task_only_if_no_other_runs(dead: Process) -> None:
    programs = config(program={"a": {"command": "x"}, "b": {"command": "y"}})
    replaced = {"a:a": CrashHistory(dead.start, 41, is_replaced=True)}
    other = process(name="b", group="b")
    assert evaluate(programs, [dead, other], replaced).verdict.action is None
    assert evaluate(programs, [dead, other], {}).verdict.action is Action.RETRIGGER
    ended = process(ProcessState.EXITED, name="b", group="b")
    assert evaluate(programs, [dead, ended], replaced).verdict.action is Action.RETRIGGER


def test_replaced_program_is_saved() -> None:
    replaced = CrashHistory(START, 42, is_replaced=True)
    assert CrashHistory.from_json(replaced.to_json()) == replaced
    assert "is_replaced" not in CrashHistory(START, 42).to_json()
