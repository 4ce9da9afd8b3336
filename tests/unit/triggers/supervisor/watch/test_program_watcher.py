"""The results of polls, which hundreds of tasks share."""

from __future__ import annotations

from unit.supervisord.support import START, config, info

from deferrable_ops.supervisord.evaluation import evaluate
from deferrable_ops.triggers.supervisor.watch.program_watcher import parse_processes


def test_polls_between_which_no_process_changed_share_their_data() -> None:
    cfg = config()
    first = parse_processes([info()])
    calm = first.evaluation(cfg, {})
    assert calm.is_calm
    second = parse_processes([info(now=START + 100)], first)
    assert second.facts is first.facts
    assert second.starts is first.starts
    assert second.processes[0].now == START + 100
    # A task that starts later has no histories yet. After a restart of the triggerer, each task has loaded its own.
    assert second.evaluation(cfg, {}) is calm
    assert second.evaluation(cfg, dict(calm.histories)) is second.evaluation(cfg, dict(calm.histories))
    assert second.evaluation(config(), {}) is not calm, "another configuration"


def test_changed_process_is_evaluated_again() -> None:
    cfg = config()
    first = parse_processes([info()])
    first.evaluation(cfg, {})
    second = parse_processes([info(pid=4711, now=START + 100, start=START + 99)], first)
    assert second.facts != first.facts
    assert second.evaluation(cfg, {}) == evaluate(cfg, second.processes, {})


def test_tasks_that_begin_with_the_same_poll_share_its_evaluation() -> None:
    cfg, reading = config(), parse_processes([info(state=100, exitstatus=1, pid=0)])
    failed = reading.evaluation(cfg, {})
    assert failed.verdict.action is not None
    assert reading.evaluation(cfg, {}) is failed


def test_evaluation_that_depends_on_the_time_is_not_shared_by_two_polls() -> None:
    cfg = config(program={"test": {"command": "x", "autorestart": True}}, policy={"crash_restarts": 2})
    first = parse_processes([info()])
    histories = first.evaluation(cfg, {}).histories
    second = parse_processes([info(pid=4711, now=START + 100, start=START + 99)], first)
    restarted = second.evaluation(cfg, histories)
    assert not restarted.is_calm
    third = parse_processes([info(pid=4711, now=START + 500, start=START + 99)], second)
    assert third.facts is second.facts
    assert third.evaluation(cfg, restarted.histories).is_calm
    assert second.evaluation(cfg, histories) is restarted
