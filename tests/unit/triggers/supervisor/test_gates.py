"""When supervisord is torn down, when steps are due, and what a user's changes of states do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time import task_runner
from unit.triggers.support import Runs, new_attempt

from deferrable_ops.high_availability.check_evaluator import CheckRules
from deferrable_ops.high_availability.facts import RunFacts
from deferrable_ops.high_availability.limits import Limits
from deferrable_ops.inbox import Attempt, NewWait
from deferrable_ops.outcome import Failure, Outcome, Skip, Success
from deferrable_ops.supervisord import SupervisorAirflowConfiguration
from deferrable_ops.triggers import dag_run
from deferrable_ops.triggers.supervisor.conditional_step import SupervisorDueStepTrigger
from deferrable_ops.triggers.supervisor.configuration import serialize_configuration
from deferrable_ops.triggers.supervisor.gate_triggers import (
    SupervisorAlarmTrigger,
    SupervisorSwitchTrigger,
    SupervisorTeardownTrigger,
)
from deferrable_ops.triggers.supervisor.step_trigger import SupervisorStepTrigger

TAKEN = Success({"host": "web-3"})
NOW = datetime.now(UTC)
CONFIGURATION = serialize_configuration(
    SupervisorAirflowConfiguration(working_dir="/data/sup", program={"test": {"command": "sleep 10"}})
)


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """States of the run's tasks in Airflow, by their ids."""
    reported: dict[str, str | None] = {}

    async def source(
        dag_id: str, run_ids: list[str], task_ids: list[str] | None
    ) -> dict[str, dict[str, Any]]:
        return {run_id: {name: reported.get(name) for name in task_ids or reported} for run_id in run_ids}

    monkeypatch.setattr(dag_run, "states_from_supervisor", source)
    return reported


@pytest.fixture(autouse=True)
def _step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps need no machine here."""

    async def wait(self: SupervisorStepTrigger) -> Outcome:
        return TAKEN

    monkeypatch.setattr(SupervisorStepTrigger, "wait", wait)


def facts(**conf: Any) -> dict[str, Any]:
    return RunFacts("dag", "run", "manual", {"start_date": NOW.isoformat()}, conf).as_json()


def teardown(stop_on_exit: bool = True, **conf: Any) -> SupervisorTeardownTrigger:
    return SupervisorTeardownTrigger(
        first_task_id="configure",
        check_task_id="check",
        retriggers=["retrigger-pass", "retrigger-fail"],
        stop_on_exit=stop_on_exit,
        run_facts=facts(**conf),
    )


def step(name: str, **arguments: Any) -> SupervisorDueStepTrigger:
    return SupervisorDueStepTrigger(
        step=name,
        check_task_id="check",
        **{"run_facts": facts(), "configuration": CONFIGURATION, **arguments},
    )


async def ended(runs: Runs, other: Attempt, task_id: str, outcome: Outcome | None) -> None:
    attempt = Attempt(new_attempt().ti_id, 1, other.dag_id, other.run_id, task_id)
    wait = await runs.inbox.waits.register(NewWait(attempt=attempt, feature="supervisor", timeout=60))
    if outcome is not None:
        await runs.inbox.waits.settle(wait.id, outcome)


@pytest.mark.parametrize(
    "reported",
    [
        {"configure": "success", "retrigger-pass": "skipped", "retrigger-fail": "skipped"},
        {"configure": "failed", "retrigger-pass": "upstream_failed", "retrigger-fail": "upstream_failed"},
        {"configure": "success", "retrigger-pass": "failed", "retrigger-fail": "skipped"},
        {"configure": None},
    ],
)
async def test_run_without_a_retrigger_is_torn_down(
    runs: Runs, states: dict[str, Any], reported: dict[str, Any]
) -> None:
    states.update(reported)
    assert await runs.start(teardown()).outcome() == Success(None)


@pytest.mark.parametrize("retrigger", ["retrigger-pass", "retrigger-fail"])
async def test_supervisord_keeps_running_for_the_retriggered_run(
    runs: Runs, states: dict[str, Any], retrigger: str
) -> None:
    states.update({"configure": "success", retrigger: "success"})
    outcome = await runs.start(teardown()).outcome()
    assert isinstance(outcome, Skip)
    assert "its next run takes over" in outcome.reason


@pytest.mark.parametrize("state", ["skipped", "upstream_failed", "removed"])
async def test_run_that_started_nothing_is_torn_down_only_after_a_retrigger(
    runs: Runs, states: dict[str, Any], state: str
) -> None:
    states["configure"] = state
    outcome = await runs.start(teardown()).outcome()
    assert outcome == Skip("this run did not use supervisord")
    assert await runs.start(teardown(**{"check-retrigger": 2})).outcome() == Success(None)


async def test_supervisord_keeps_running_without_stop_on_exit(runs: Runs, states: dict[str, Any]) -> None:
    states["configure"] = "success"
    outcome = await runs.start(teardown(stop_on_exit=False)).outcome()
    assert isinstance(outcome, Skip)
    assert "stop_on_exit=False" in outcome.reason


@pytest.mark.parametrize(
    "check, ends",
    [
        (Success(["fail", "retrigger"]), False),
        (Success(["pass", "stop"]), True),
        (Failure("gone"), True),
        (None, True),
    ],
)
async def test_teardown_without_task_states_uses_the_check(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, check: Outcome | None, ends: bool
) -> None:
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", object(), raising=False)  # as in dag.test()
    attempt = new_attempt()
    await ended(runs, attempt, "check", check)
    outcome = await runs.start(teardown(), attempt).outcome()
    assert isinstance(outcome, Success) == ends


@pytest.mark.parametrize("name", ["stop-programs", "stop-supervisor", "unconfigure-supervisor"])
@pytest.mark.parametrize(
    "decided, expected",
    [
        (Success(None), TAKEN),
        (Skip("the DAG was started again"), Skip("the DAG was started again")),
        (
            Failure("no answer"),
            Failure(
                "the task teardown could not decide whether to stop supervisord: no answer; clear the task teardown"
            ),
        ),
    ],
)
async def test_teardown_step_follows_its_gate(
    runs: Runs, name: str, decided: Outcome, expected: Outcome
) -> None:
    attempt = new_attempt(task_id=name)
    await ended(runs, attempt, "teardown", decided)
    assert await runs.start(step(name, gate_task_id="teardown"), attempt).outcome() == expected


@pytest.mark.parametrize(
    "state, due", [("success", True), ("failed", False), ("skipped", False), (None, False)]
)
async def test_teardown_step_follows_a_state_set_by_a_user(
    runs: Runs, states: dict[str, Any], state: str | None, due: bool
) -> None:
    states["teardown"] = state
    outcome = await runs.start(step("stop-programs", gate_task_id="teardown")).outcome()
    assert outcome == TAKEN if due else isinstance(outcome, Skip)


@pytest.mark.parametrize("other_run", ["watches", "ended", "none"])
async def test_teardown_step_cleared_in_an_old_run_spares_a_newer_run(runs: Runs, other_run: str) -> None:
    attempt, newer = new_attempt(), new_attempt()
    await ended(runs, newer, "configure", TAKEN)
    if other_run == "watches":
        await ended(runs, newer, "check", None)
    await ended(runs, attempt, "teardown", Success(None))
    if other_run != "none":
        await runs.inbox.daemons.claim("/data/sup", "web-3", "", dag_id="dag", run_id=newer.run_id)
    outcome = await runs.start(step("stop-programs", gate_task_id="teardown"), attempt).outcome()
    uses = Skip(f"the DAG run {newer.run_id} uses this supervisord now")
    assert outcome == (uses if other_run == "watches" else TAKEN)


async def test_omitted_step_is_skipped_with_a_reason(runs: Runs) -> None:
    attempt = new_attempt()
    await ended(runs, attempt, "teardown", Success(None))
    skipped = step("unconfigure-supervisor", gate_task_id="teardown", skip_because="cleanup=False: it stays")
    assert await runs.start(skipped, attempt).outcome() == Skip("cleanup=False: it stays")


@pytest.mark.parametrize(
    "name", ["configure-supervisor", "start-supervisor", "start-programs", "restart-programs"]
)
async def test_start_step_does_nothing_after_the_time_limit(runs: Runs, name: str) -> None:
    over = CheckRules(Limits.of(0, None, None), "start_date").as_json()
    outcome = await runs.start(step(name, rules=over)).outcome()
    assert outcome == Success({"done": False, "because": "runtime=0 s is over"})
    later = CheckRules(Limits.of(timedelta(hours=1), None, 0), "start_date").as_json()
    assert await runs.start(step(name, rules=later)).outcome() == TAKEN
    forced = facts(**{"check-force-run": True, "airflow_ha_force_run": True})
    assert await runs.start(step(name, rules=over, run_facts=forced)).outcome() == TAKEN


async def test_restart_without_limits_is_always_due(runs: Runs) -> None:
    assert await runs.start(step("restart-programs")).outcome() == TAKEN


def kill() -> SupervisorDueStepTrigger:
    return step("force-kill", gate_task_id="force-kill-dag")


async def test_clearing_only_the_kill_task_kills(runs: Runs) -> None:
    first = new_attempt(task_id="force-kill")
    await ended(runs, first, "force-kill-dag", Skip("..."))
    assert isinstance(await runs.start(kill(), first).outcome(), Skip)
    cleared = Attempt(new_attempt().ti_id, 2, first.dag_id, first.run_id, first.task_id)
    assert await runs.start(kill(), cleared).outcome() == TAKEN


async def test_clearing_the_whole_run_kills_nothing_also_after_a_kill(runs: Runs) -> None:
    first = new_attempt(task_id="force-kill")
    attempts = [first, *(Attempt(new_attempt().ti_id, n, "dag", first.run_id, "force-kill") for n in (2, 3))]
    await ended(runs, first, "force-kill-dag", Skip("..."))
    await runs.start(kill(), attempts[0]).outcome()
    assert await runs.start(kill(), attempts[1]).outcome() == TAKEN
    await ended(runs, first, "force-kill-dag", Skip("..."))  # again: the run was cleared
    assert isinstance(await runs.start(kill(), attempts[2]).outcome(), Skip)


@pytest.mark.parametrize("try_number, killed", [(1, False), (2, True)])
async def test_kill_of_a_run_missing_in_the_inbox_is_detected_by_its_attempt(
    runs: Runs, try_number: int, killed: bool
) -> None:
    outcome = await runs.start(kill(), new_attempt(try_number)).outcome()
    assert outcome == TAKEN if killed else isinstance(outcome, Skip)


async def test_switch_is_skipped_with_the_task_to_clear(runs: Runs) -> None:
    outcome = await runs.start(SupervisorSwitchTrigger(clears="dag-force-kill")).outcome()
    assert isinstance(outcome, Skip)
    assert "clear the task 'dag-force-kill'" in outcome.reason


def alarm() -> SupervisorAlarmTrigger:
    return SupervisorAlarmTrigger(task_ids=["a", "b"], leaf_task_id="leaf", check_task_id="check")


@pytest.mark.parametrize(
    "reported, expected",
    [
        ({"a": "failed", "b": "upstream_failed"}, Failure("failed steps: a; read their logs")),
        ({"a": "failed", "b": "failed"}, Failure("failed steps: a, b; read their logs")),
        # A task before or beside it failed; Airflow sets the run's state by that.
        ({"a": "upstream_failed", "before": "failed", "leaf": "failed"}, Skip("no step failed")),
        ({"a": "success", "before": "failed", "leaf": "success"}, Skip("no step failed")),
        ({"a": "success", "b": "skipped", "leaf": "skipped"}, Skip("no step failed")),
    ],
)
async def test_alarm_names_the_steps_that_failed(
    runs: Runs, states: dict[str, Any], reported: dict[str, Any], expected: Outcome
) -> None:
    states.update(reported)
    assert await runs.start(alarm()).outcome() == expected


@pytest.mark.parametrize("what_ran", ["check", "before"])
async def test_run_marked_as_failed_fails(runs: Runs, states: dict[str, Any], what_ran: str) -> None:
    states.update({"a": "success", what_ran: "failed", "leaf": "skipped"})
    ended_by_user = Failure("a user marked this run as failed while its programs were running")
    assert await runs.start(alarm()).outcome() == ended_by_user
    attempt = new_attempt()
    await ended(runs, attempt, "leaf", Skip("the check ended as pass/stop"))  # not skipped by Airflow
    assert await runs.start(alarm(), attempt).outcome() == Skip("no step failed")


async def test_leaf_that_the_scheduler_skips_after_pass_is_no_sign_of_a_user(
    runs: Runs, states: dict[str, Any]
) -> None:
    states.update({"a": "success", "after": "failed", "leaf": "skipped"})
    attempt = new_attempt()
    await ended(runs, attempt, "check", Success(["pass", "stop"]))
    assert await runs.start(alarm(), attempt).outcome() == Skip("no step failed")


async def test_run_marked_as_success_does_not_fail(runs: Runs, states: dict[str, Any]) -> None:
    states.update({"a": "success", "check": "success", "leaf": "skipped"})
    assert await runs.start(alarm()).outcome() == Skip("no step failed")


@pytest.mark.parametrize(
    "outcome, expected",
    [
        (Failure("no"), Failure("failed steps: b; read their logs")),
        (TAKEN, Skip("no step failed")),
        (None, Skip("no step failed")),
    ],
)
async def test_alarm_without_task_states_reads_the_steps_outcomes(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, outcome: Outcome | None, expected: Outcome
) -> None:
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", object(), raising=False)
    attempt = new_attempt()
    await ended(runs, attempt, "b", outcome)
    assert await runs.start(alarm(), attempt).outcome() == expected


@pytest.mark.parametrize("trigger", [teardown(), step("stop-programs"), alarm(), SupervisorSwitchTrigger()])
def test_trigger_is_restored_from_its_serialized_form(trigger: Any) -> None:
    import pkgutil

    path, kwargs = trigger.serialize()
    assert pkgutil.resolve_name(path) is type(trigger)
    assert type(trigger)(**kwargs, of_a_later_version=1).serialize() == (path, kwargs)


def test_missing_run_facts_are_an_error() -> None:
    trigger = SimpleNamespace(run_facts=None, task_instance=object(), task=None)
    with pytest.raises(Exception, match="The trigger has no DAG run details"):
        dag_run.run_facts_of(trigger)
