"""How a series of check results is evaluated."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from unit.high_availability.support import START, facts

from deferrable_ops.high_availability import Action, CheckResult, Result
from deferrable_ops.high_availability.check_evaluator import CheckEvaluator, CheckRules
from deferrable_ops.high_availability.limits import Limits
from deferrable_ops.high_availability.poll_schedule import PollSchedule
from deferrable_ops.high_availability.retrigger_backoff import RetriggerBackoff
from deferrable_ops.high_availability.thresholds import Thresholds

WELL: CheckResult = (Result.PASS, Action.CONTINUE)
ILL: CheckResult = (Result.FAIL, Action.CONTINUE)
AGAIN: CheckResult = (Result.FAIL, Action.RETRIGGER)
DONE: CheckResult = (Result.PASS, Action.STOP)


def make_evaluator(
    conf: dict[str, Any] | None = None,
    params: dict[str, Any] | None = None,
    state: Any = None,
    limits: Limits | None = None,
    **rules: Any,
) -> CheckEvaluator:
    return CheckEvaluator(
        "ha",
        facts(conf, params),
        CheckRules(limits=limits or Limits(), reference_date="start_date", **rules),
        state,
    )


@pytest.mark.parametrize("result", Result)
@pytest.mark.parametrize("action", [Action.STOP, Action.RETRIGGER])
def test_stop_and_retrigger_end_the_checks(result: Result, action: Action) -> None:
    decision = make_evaluator().evaluate((result, action), START)
    assert decision is not None
    assert decision.as_json() == [result.value, action.value]


@pytest.mark.parametrize("checked", [WELL, ILL])
def test_continue_does_not_end_the_checks(checked: CheckResult) -> None:
    assert make_evaluator().evaluate(checked, START) is None


def test_failure_counts_at_its_threshold() -> None:
    evaluator = make_evaluator(thresholds=Thresholds.of(success=1, failure=3))
    assert [evaluator.evaluate(one, START) for one in (AGAIN, AGAIN, WELL, AGAIN, AGAIN)] == [None] * 5
    decision = evaluator.evaluate(AGAIN, START)
    assert decision is not None
    assert decision.as_json() == ["fail", "retrigger"]


def test_success_counts_at_its_threshold() -> None:
    evaluator = make_evaluator(thresholds=Thresholds.of(success=2, failure=1))
    assert [evaluator.evaluate(one, START) for one in (DONE, ILL, DONE)] == [None] * 3
    assert evaluator.evaluate(DONE, START) is not None


def test_consecutive_results_survive_a_restart() -> None:
    rules = {"thresholds": Thresholds.of(success=1, failure=3)}
    before = make_evaluator(**rules)
    before.evaluate(AGAIN, START)
    before.evaluate(AGAIN, START)
    after = make_evaluator(state=json.loads(json.dumps(before.state)), **rules)
    assert after.evaluate(AGAIN, START) is not None


def test_state_is_unchanged_by_equal_results() -> None:
    evaluator = make_evaluator(thresholds=Thresholds.of(success=2, failure=3))
    states = []
    for _ in range(5):
        evaluator.evaluate(WELL, START)
        states.append(evaluator.state)
    assert states[2] == states[3] == states[4]


@pytest.mark.parametrize(
    "checks, health",
    [([], "pass"), ([WELL], "pass"), ([ILL], "fail"), ([WELL, ILL], "fail"), ([ILL, WELL], "pass")],
)
def test_timeout_retriggers_with_the_last_result_or_pass(checks: list[CheckResult], health: str) -> None:
    evaluator = make_evaluator()
    for one in checks:
        evaluator.evaluate(one, START)
    assert evaluator.timed_out(START).as_json() == [health, "retrigger"]


def test_timeout_ignores_a_result_below_its_threshold() -> None:
    evaluator = make_evaluator(thresholds=Thresholds.of(success=1, failure=3))
    evaluator.evaluate(WELL, START)
    evaluator.evaluate(ILL, START)
    assert evaluator.timed_out(START).as_json() == ["pass", "retrigger"]


def test_retrigger_becomes_stop_at_maxretrigger_while_a_healthy_run_continues() -> None:
    evaluator = make_evaluator({"ha-retrigger": "2"}, limits=Limits.of(None, None, 2))
    assert evaluator.evaluate(WELL, START) is None
    assert evaluator.timed_out(START).as_json() == ["pass", "stop"]
    decision = evaluator.evaluate(AGAIN, START)
    assert decision is not None
    assert decision.as_json() == ["fail", "stop"]
    assert "maxretrigger=2" in decision.reason


@pytest.mark.parametrize("minutes, action", [(10, "stop"), (10.1, "retrigger")])
def test_long_run_resets_maxretrigger(minutes: float, action: str) -> None:
    evaluator = make_evaluator({"ha-retrigger": 9, "ha-recent-retrigger": 2}, limits=Limits.of(None, None, 2))
    decision = evaluator.evaluate(AGAIN, START + timedelta(minutes=minutes))
    assert decision is not None
    assert decision.as_json() == ["fail", action]


def test_maxretrigger_of_zero_never_retriggers_even_after_a_long_run() -> None:
    decision = make_evaluator(limits=Limits.of(None, None, 0)).evaluate(AGAIN, START + timedelta(days=1))
    assert decision is not None
    assert decision.as_json() == ["fail", "stop"]


def test_limit_ends_the_checks_as_pass_regardless_of_results() -> None:
    evaluator = make_evaluator(limits=Limits.of(60, None, None))
    assert evaluator.at_limit(START + timedelta(seconds=59)) is None
    assert evaluator.pause(START + timedelta(seconds=50)) == 10
    for decision in (
        evaluator.at_limit(START + timedelta(seconds=60)),
        evaluator.evaluate(AGAIN, START + timedelta(seconds=61)),
        evaluator.timed_out(START + timedelta(seconds=61)),
    ):
        assert decision is not None
        assert decision.as_json() == ["pass", "stop"]
        assert "runtime=60 s" in decision.reason


def test_limits_of_a_chain_count_from_its_first_run() -> None:
    first = START - timedelta(hours=3)
    evaluator = make_evaluator({"ha-referencedate": first.isoformat()}, limits=Limits.of(3600, None, None))
    assert evaluator.end == first + timedelta(hours=1)
    assert evaluator.at_limit(START) is not None


@pytest.mark.parametrize("forced", [({"airflow_ha_force_run": True}, {}), ({}, {"ha-force-run": True})])
def test_forced_run_has_no_limits(forced: tuple[dict[str, Any], dict[str, Any]]) -> None:
    evaluator = make_evaluator(*forced, limits=Limits.of(0, "12:00:01", 0))
    assert evaluator.at_limit(START + timedelta(days=9)) is None
    assert evaluator.timed_out(START + timedelta(days=9)).as_json() == ["pass", "retrigger"]


def test_pause_is_the_interval_and_doubles_with_failures_alone() -> None:
    evaluator = make_evaluator(pace=PollSchedule(interval=10, backoff=True, max_wait=35))
    pauses = []
    for one in (WELL, ILL, ILL, ILL, ILL, WELL):
        evaluator.evaluate(one, START)
        pauses.append(evaluator.pause(START))
    assert pauses == [10, 10, 20, 35, 35, 10]


def test_interval_longer_than_max_wait_is_not_shortened() -> None:
    evaluator = make_evaluator(pace=PollSchedule(interval=100, backoff=True, max_wait=35))
    evaluator.evaluate(ILL, START)
    evaluator.evaluate(ILL, START)
    assert evaluator.pause(START) == 100


def test_jitter_spreads_the_pauses_by_its_share() -> None:
    evaluator = make_evaluator(pace=PollSchedule(interval=10, jitter=0.2))
    pauses = [evaluator.pause(START) for _ in range(200)]
    assert 8 <= min(pauses) < 9
    assert 11 < max(pauses) <= 12


def test_rules_round_trip_as_json_across_versions() -> None:
    rules = CheckRules(
        Limits.of(1.5, "06:00", 3),
        "start_date",
        "Europe/Berlin",
        Thresholds.of(2, 3),
        PollSchedule(interval=5, backoff=True, jitter=0.1),
        RetriggerBackoff(1.0, 2.0),
    )
    stored = json.loads(json.dumps(rules.as_json()))
    assert CheckRules.from_json(stored) == rules
    stored["pace"]["of_the_future"] = stored["of_the_future"] = 1
    assert CheckRules.from_json(stored) == rules
    assert CheckRules.from_json({}) == CheckRules()


def test_end_is_the_time_of_the_limit() -> None:
    assert make_evaluator().end is None
    assert make_evaluator(limits=Limits.of(None, "18:00", None)).end == datetime(
        2026, 3, 1, 18, tzinfo=START.tzinfo
    )
