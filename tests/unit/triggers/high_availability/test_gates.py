"""The gates behind a check: which of them run, also if a user set the check's state."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from unit.high_availability.support import facts
from unit.triggers.support import Runs, new_attempt

from deferrable_ops.inbox import Attempt, Inbox, NewWait
from deferrable_ops.outcome import Failure, Outcome, Skip, Success
from deferrable_ops.triggers import dag_run
from deferrable_ops.triggers.high_availability.triggers import HighAvailabilityGateTrigger

DECISIONS = [(result, action) for result in ("pass", "fail") for action in ("stop", "retrigger")]


def gate(result: str, action: str | None, fails: bool = False) -> HighAvailabilityGateTrigger:
    return HighAvailabilityGateTrigger(check_task_id="ha", result=result, action=action, fails=fails)


def check_of(gate: Attempt, try_number: int = 1, of: Attempt | None = None) -> Attempt:
    ti_id = new_attempt().ti_id if of is None else of.ti_id
    return Attempt(ti_id, try_number, gate.dag_id, gate.run_id, "ha")


async def ended(inbox: Inbox, check: Attempt, outcome: Outcome | None) -> str:
    wait = await inbox.waits.register(NewWait(attempt=check, feature="high_availability", timeout=60))
    if outcome is not None:
        await inbox.waits.settle(wait.id, outcome)
    return wait.id


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The state of the check in Airflow."""
    airflow = SimpleNamespace(state="unused")

    async def source(dag_id: str, run_ids: list[str], task_ids: list[str]) -> dict[str, dict[str, Any]]:
        return {run_id: dict.fromkeys(task_ids, airflow.state) for run_id in run_ids}

    monkeypatch.setattr(dag_run, "states_from_supervisor", source)
    return airflow


@pytest.mark.parametrize("decided", DECISIONS)
async def test_gate_runs_only_for_its_result_and_action(runs: Runs, decided: tuple[str, str]) -> None:
    attempts = [new_attempt() for _ in DECISIONS]
    for attempt in attempts:
        await ended(runs.inbox, check_of(attempt), Success(list(decided)))
    outcomes = await asyncio.gather(
        *(runs.start(gate(*own), attempt).outcome() for own, attempt in zip(DECISIONS, attempts, strict=True))
    )
    chosen = [isinstance(outcome, Success) for outcome in outcomes]
    assert chosen == [own == decided for own in DECISIONS]
    assert all(isinstance(outcome, (Success, Skip)) for outcome in outcomes)


@pytest.mark.parametrize("decided", DECISIONS)
async def test_leaf_fails_whenever_the_result_is_fail(runs: Runs, decided: tuple[str, str]) -> None:
    attempt = new_attempt()
    await ended(runs.inbox, check_of(attempt), Success(list(decided)))
    outcome = await runs.start(gate("fail", None, fails=True), attempt).outcome()
    assert isinstance(outcome, Failure) == (decided[0] == "fail")


async def test_gate_outcome_names_the_attempt_of_the_check(runs: Runs) -> None:
    attempt = new_attempt()
    first = check_of(attempt)
    await ended(runs.inbox, first, Success(["pass", "retrigger"]))
    newest = await ended(runs.inbox, check_of(attempt, 2, of=first), Success(["pass", "retrigger"]))
    outcome = await runs.start(gate("pass", "retrigger"), attempt).outcome()
    ended_at = (await runs.inbox.waits.get(newest)).settled_at
    assert outcome == Success({"attempt": newest, "ended_at": ended_at})


async def test_gate_uses_the_newest_attempt_of_a_cleared_check(runs: Runs) -> None:
    attempt = new_attempt()
    first = check_of(attempt)
    await ended(runs.inbox, first, Success(["fail", "retrigger"]))
    await ended(runs.inbox, check_of(attempt, 2, of=first), Success(["pass", "stop"]))
    assert isinstance(await runs.start(gate("fail", "retrigger"), attempt).outcome(), Skip)


async def test_check_of_another_run_is_ignored(runs: Runs, state: SimpleNamespace) -> None:
    attempt, state.state = new_attempt(), "success"
    await ended(runs.inbox, check_of(new_attempt()), Success(["fail", "stop"]))
    assert isinstance(await runs.start(gate("fail", "stop", fails=True), attempt).outcome(), Skip)


@pytest.mark.parametrize(
    "task_state, stop_pass, leaf",
    [
        ("success", Success, Skip),
        ("failed", Skip, Failure),
        ("upstream_failed", Skip, Failure),
        ("skipped", Skip, Skip),
    ],
)
@pytest.mark.parametrize("was_there", [True, False])
async def test_check_without_a_result_counts_by_its_task_state(
    runs: Runs, state: SimpleNamespace, was_there: bool, task_state: str, stop_pass: type, leaf: type
) -> None:
    attempt, state.state = new_attempt(), task_state
    if was_there:
        await ended(runs.inbox, check_of(attempt), None)
    assert isinstance(await runs.start(gate("pass", "stop"), attempt).outcome(), stop_pass)
    attempt = new_attempt()
    if was_there:
        await ended(runs.inbox, check_of(attempt), None)
    assert isinstance(await runs.start(gate("fail", None, fails=True), attempt).outcome(), leaf)


@pytest.mark.parametrize("outcome, leaf", [(Failure("no such module"), Failure), (Skip("not today"), Skip)])
async def test_leaf_after_a_check_that_failed_or_was_skipped_does_the_same(
    runs: Runs, outcome: Outcome, leaf: type
) -> None:
    attempt = new_attempt()
    await ended(runs.inbox, check_of(attempt), outcome)
    assert isinstance(await runs.start(gate("fail", None, fails=True), attempt).outcome(), leaf)
    attempt = new_attempt()
    await ended(runs.inbox, check_of(attempt), outcome)
    assert isinstance(await runs.start(gate("fail", "retrigger"), attempt).outcome(), Skip)


def retrigger_gate(
    conf: dict[str, Any], started: datetime | None = None, **arguments: Any
) -> HighAvailabilityGateTrigger:
    run = facts(conf, start_date=started or datetime.now(UTC))
    return HighAvailabilityGateTrigger(
        check_task_id="ha",
        result="fail",
        action="retrigger",
        backoff={"delay": 1.0, "reset_after": 600.0},
        run_facts=run.as_json(),
        **arguments,
    )


@pytest.mark.parametrize("conf, pause", [({}, 0.0), ({"ha-retrigger": 1}, 1.0), ({"ha-retrigger": 2}, 2.0)])
async def test_retrigger_gate_waits_in_the_triggerer(runs: Runs, conf: dict[str, Any], pause: float) -> None:
    attempt = new_attempt()
    await ended(runs.inbox, check_of(attempt), Success(["fail", "retrigger"]))
    run = runs.start(retrigger_gate(conf), attempt)
    outcome = await run.outcome()
    assert isinstance(outcome, Success)
    waited = (await run.wait()).settled_at - outcome.value["ended_at"]
    assert pause <= waited < pause + 0.9


async def test_retrigger_gate_does_not_wait_after_a_long_run(runs: Runs) -> None:
    attempt = new_attempt()
    await ended(runs.inbox, check_of(attempt), Success(["fail", "retrigger"]))
    long_ago = datetime.now(UTC) - timedelta(minutes=11)
    run = runs.start(retrigger_gate({"ha-recent-retrigger": 9}, long_ago), attempt)
    assert isinstance(await asyncio.wait_for(run.outcome(), 5), Success)


async def test_pause_ends_before_the_deadline_of_the_gate(runs: Runs) -> None:
    attempt = new_attempt()
    await ended(runs.inbox, check_of(attempt), Success(["fail", "retrigger"]))
    # The pause would be ten minutes.
    run = runs.start(retrigger_gate({"ha-retrigger": 99}, timeout=1.5), attempt)
    assert isinstance(await asyncio.wait_for(run.outcome(), 10), Success)


async def test_gate_that_expired_without_a_triggerer_still_decides(runs: Runs) -> None:
    attempt = new_attempt()
    await ended(runs.inbox, check_of(attempt), Success(["fail", "retrigger"]))
    wait = await runs.inbox.waits.register(
        NewWait(attempt=attempt, feature="high_availability", timeout=0.001)
    )
    outcome = await runs.start(retrigger_gate({"ha-retrigger": 99}), attempt).outcome()
    assert isinstance(outcome, Success)
    assert wait.id == attempt.wait_id


async def test_gate_that_a_worker_with_an_older_release_deferred_does_not_wait(runs: Runs) -> None:
    attempt = new_attempt()
    check = await ended(runs.inbox, check_of(attempt), Success(["fail", "retrigger"]))
    stored = gate("fail", "retrigger")
    stored.inbox, stored.current = runs.inbox, await runs.inbox.waits.get(check)
    # A task instance of this kind has no data of the DAG run.
    stored.task_instance = SimpleNamespace(**asdict(attempt))  # type: ignore[assignment]
    assert isinstance(await stored.wait(), Success)
