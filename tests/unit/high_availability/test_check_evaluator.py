"""What a series of checks comes to."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from unit.high_availability.support import START, facts

from deferrable_ops.high_availability import Action, CheckResult, Result
from deferrable_ops.high_availability.check_evaluator import Rules, Watch
from deferrable_ops.high_availability.limits import Limits
from deferrable_ops.high_availability.poll_schedule import Pace
from deferrable_ops.high_availability.thresholds import Thresholds

WELL: CheckResult = (Result.PASS, Action.CONTINUE)
ILL: CheckResult = (Result.FAIL, Action.CONTINUE)
AGAIN: CheckResult = (Result.FAIL, Action.RETRIGGER)
DONE: CheckResult = (Result.PASS, Action.STOP)


def watch(
    conf: dict[str, Any] | None = None,
    params: dict[str, Any] | None = None,
    state: Any = None,
    limits: Limits | None = None,
    **rules: Any,
) -> Watch:
    return Watch(
        "ha",
        facts(conf, params),
        Rules(limits=limits or Limits(), reference_date="start_date", **rules),
        state,
    )


@pytest.mark.parametrize("result", Result)
@pytest.mark.parametrize("action", [Action.STOP, Action.RETRIGGER])
def test_check_that_wants_an_end_has_it(result: Result, action: Action) -> None:
    decision = watch().take((result, action), START)
    assert decision is not None
    assert decision.as_json() == [result.value, action.value]


@pytest.mark.parametrize("checked", [WELL, ILL])
def test_continue_goes_on(checked: CheckResult) -> None:
    assert watch().take(checked, START) is None


def test_failure_counts_once_it_has_come_often_enough_in_a_row() -> None:
    judged = watch(thresholds=Thresholds.of(success=1, failure=3))
    assert [judged.take(one, START) for one in (AGAIN, AGAIN, WELL, AGAIN, AGAIN)] == [None] * 5
    decision = judged.take(AGAIN, START)
    assert decision is not None
    assert decision.as_json() == ["fail", "retrigger"]


def test_success_counts_once_it_has_come_often_enough_in_a_row() -> None:
    judged = watch(thresholds=Thresholds.of(success=2, failure=1))
    assert [judged.take(one, START) for one in (DONE, ILL, DONE)] == [None] * 3
    assert judged.take(DONE, START) is not None


def test_streak_goes_on_after_a_restart() -> None:
    rules = {"thresholds": Thresholds.of(success=1, failure=3)}
    before = watch(**rules)
    before.take(AGAIN, START)
    before.take(AGAIN, START)
    after = watch(state=json.loads(json.dumps(before.state)), **rules)
    assert after.take(AGAIN, START) is not None


def test_state_stays_the_same_while_nothing_changes() -> None:
    judged = watch(thresholds=Thresholds.of(success=2, failure=3))
    states = []
    for _ in range(5):
        judged.take(WELL, START)
        states.append(judged.state)
    assert states[2] == states[3] == states[4]


@pytest.mark.parametrize(
    "checks, health",
    [([], "pass"), ([WELL], "pass"), ([ILL], "fail"), ([WELL, ILL], "fail"), ([ILL, WELL], "pass")],
)
def test_timeout_retriggers_with_the_last_result_and_as_pass_without_one(
    checks: list[CheckResult], health: str
) -> None:
    judged = watch()
    for one in checks:
        judged.take(one, START)
    assert judged.timed_out(START).as_json() == [health, "retrigger"]


def test_timeout_does_not_take_a_result_for_health_that_has_not_come_often_enough() -> None:
    judged = watch(thresholds=Thresholds.of(success=1, failure=3))
    judged.take(WELL, START)
    judged.take(ILL, START)
    assert judged.timed_out(START).as_json() == ["pass", "retrigger"]


def test_retrigger_becomes_stop_when_maxretrigger_is_used_up_and_a_healthy_run_goes_on() -> None:
    judged = watch({"ha-retrigger": "2"}, limits=Limits.of(None, None, 2))
    assert judged.take(WELL, START) is None
    assert judged.timed_out(START).as_json() == ["pass", "stop"]
    decision = judged.take(AGAIN, START)
    assert decision is not None
    assert decision.as_json() == ["fail", "stop"]
    assert "maxretrigger=2" in decision.reason


def test_limit_ends_the_checks_as_pass_whatever_they_say() -> None:
    judged = watch(limits=Limits.of(60, None, None))
    assert judged.at_limit(START + timedelta(seconds=59)) is None
    assert judged.pause(START + timedelta(seconds=50)) == 10
    for decision in (
        judged.at_limit(START + timedelta(seconds=60)),
        judged.take(AGAIN, START + timedelta(seconds=61)),
        judged.timed_out(START + timedelta(seconds=61)),
    ):
        assert decision is not None
        assert decision.as_json() == ["pass", "stop"]
        assert "runtime=60 s" in decision.reason


def test_limits_of_a_chain_count_from_its_first_run() -> None:
    first = START - timedelta(hours=3)
    judged = watch({"ha-referencedate": first.isoformat()}, limits=Limits.of(3600, None, None))
    assert judged.end == first + timedelta(hours=1)
    assert judged.at_limit(START) is not None


@pytest.mark.parametrize("forced", [({"airflow_ha_force_run": True}, {}), ({}, {"ha-force-run": True})])
def test_forced_run_has_no_limits(forced: tuple[dict[str, Any], dict[str, Any]]) -> None:
    judged = watch(*forced, limits=Limits.of(0, "12:00:01", 0))
    assert judged.at_limit(START + timedelta(days=9)) is None
    assert judged.timed_out(START + timedelta(days=9)).as_json() == ["pass", "retrigger"]


def test_pause_is_the_interval_and_doubles_with_failures_alone() -> None:
    judged = watch(pace=Pace(interval=10, backoff=True, max_wait=35))
    pauses = []
    for one in (WELL, ILL, ILL, ILL, ILL, WELL):
        judged.take(one, START)
        pauses.append(judged.pause(START))
    assert pauses == [10, 10, 20, 35, 35, 10]


def test_interval_longer_than_max_wait_stays_what_it_is() -> None:
    judged = watch(pace=Pace(interval=100, backoff=True, max_wait=35))
    judged.take(ILL, START)
    judged.take(ILL, START)
    assert judged.pause(START) == 100


def test_jitter_spreads_the_pauses_by_its_share() -> None:
    judged = watch(pace=Pace(interval=10, jitter=0.2))
    pauses = [judged.pause(START) for _ in range(200)]
    assert 8 <= min(pauses) < 9
    assert 11 < max(pauses) <= 12


def test_rules_travel_as_json_and_may_come_from_another_version() -> None:
    rules = Rules(
        Limits.of(1.5, "06:00", 3),
        "start_date",
        "Europe/Berlin",
        Thresholds.of(2, 3),
        Pace(interval=5, backoff=True, jitter=0.1),
    )
    told = json.loads(json.dumps(rules.as_json()))
    assert Rules.from_json(told) == rules
    told["pace"]["of_the_future"] = told["of_the_future"] = 1
    assert Rules.from_json(told) == rules
    assert Rules.from_json({}) == Rules()


def test_watch_says_until_when_at_the_latest() -> None:
    assert watch().end is None
    assert watch(limits=Limits.of(None, "18:00", None)).end == datetime(2026, 3, 1, 18, tzinfo=START.tzinfo)
