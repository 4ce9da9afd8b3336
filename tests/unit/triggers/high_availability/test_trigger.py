"""The trigger that polls a check: results, limits and restarts."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from unit.triggers.high_availability import support as checks
from unit.triggers.high_availability.support import trigger
from unit.triggers.support import AirflowComms, Runs, eventually, new_attempt

from deferrable_ops.high_availability.limits import Limits
from deferrable_ops.high_availability.thresholds import Thresholds
from deferrable_ops.inbox import WaitState
from deferrable_ops.outcome import Failure, Skip, Success
from deferrable_ops.triggers.high_availability import triggers


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    checks.forget()
    yield
    checks.go_on.set()


@pytest.mark.parametrize("check", ["scripted", "scripted_on_the_loop", "returns_a_coroutine", "nested.check"])
async def test_check_runs_until_its_action_ends_it(runs: Runs, check: str) -> None:
    checks.results[:] = [("pass", "continue"), ("fail", "continue"), ("fail", "retrigger")]
    path = f"{checks.PATH}{check}"
    outcome = await runs.start(trigger(path)).outcome()
    assert outcome == Success(["fail", "retrigger"])
    assert len(checks.calls) == 3


@pytest.mark.parametrize(
    "result, action, left",
    [
        ("pass", "stop", {"stop-pass"}),
        ("fail", "stop", {"stop-fail", "force-dag-fail"}),
        ("pass", "retrigger", {"retrigger-pass"}),
        ("fail", "retrigger", {"retrigger-fail", "force-dag-fail"}),
    ],
)
async def test_scheduler_skips_the_gates_that_have_nothing_to_do(
    runs: Runs, airflow_comms: AirflowComms, result: str, action: str, left: set[str]
) -> None:
    checks.results[:] = [(result, action)]
    await runs.start(trigger(), new_attempt(task_id="group.ha")).outcome()
    names = {"stop-pass", "stop-fail", "retrigger-pass", "retrigger-fail", "force-dag-fail"}
    [skipped] = airflow_comms.xcoms["skipmixin_key"].values()
    assert set(skipped) == {f"group.ha-{name}" for name in names - left}


async def test_gates_decide_by_themselves_if_the_check_has_no_decision_or_no_xcom(
    runs: Runs, airflow_comms: AirflowComms
) -> None:
    assert isinstance(await runs.start(trigger("skips")).outcome(), Skip)
    assert not airflow_comms.xcoms
    checks.results[:] = [("pass", "stop")]
    airflow_comms.error = TimeoutError()
    assert await runs.start(trigger()).outcome() == Success(["pass", "stop"])


async def test_check_gets_its_run_and_its_arguments(runs: Runs) -> None:
    checks.results[:] = [("pass", "stop")]
    attempt = new_attempt(task_id="ha")
    started = trigger(conf={"counter": 3}, op_kwargs={"mine": 1}, templates_dict={"day": "monday"})
    await runs.start(started, attempt).outcome()
    [context] = checks.calls
    assert context["dag_run"].conf == {"counter": 3}
    assert context["ti"] is context["task_instance"]
    assert (context["ti"].task_id, context["ti"].try_number) == ("ha", 1)
    assert (context["mine"], context["templates_dict"], context["ds"]) == (1, {"day": "monday"}, "2026-02-28")


async def test_check_gets_only_accepted_arguments(runs: Runs) -> None:
    await runs.start(trigger("takes_url", op_args=["https://x"], op_kwargs={"retries": 2})).outcome()
    assert checks.calls == [{"url": "https://x", "ds": "2026-02-28", "retries": 2}]


async def test_class_is_instantiated_once_and_called_each_time(runs: Runs) -> None:
    checks.results[:] = [("pass", "continue"), ("pass", "stop")]
    await runs.start(trigger("Queue", op_kwargs={"name": "orders"})).outcome()
    assert checks.Queue.made == ["orders"]
    assert checks.calls == [{"queue": "orders", "ds": "2026-02-28"}] * 2


@pytest.mark.parametrize(
    "check, because",
    [
        ("no.such.module", "no.such.module"),
        ("no_such_check", "no_such_check"),
        ("CannotBeMade", "no such queue"),
        ("not_callable", "cannot be called"),
    ],
)
async def test_check_that_cannot_be_loaded_fails_the_task(runs: Runs, check: str, because: str) -> None:
    outcome = await runs.start(trigger(check)).outcome()
    assert isinstance(outcome, Failure)
    assert because in outcome.reason


@pytest.mark.parametrize("conf", [{"task-retrigger": "x"}, {"task-referencedate": "x"}])
async def test_conf_that_cannot_be_read_fails_the_task(runs: Runs, conf: dict[str, Any]) -> None:
    outcome = await runs.start(trigger(conf=conf), new_attempt(task_id="task")).outcome()
    assert isinstance(outcome, Failure)
    assert next(iter(conf)) in outcome.reason
    assert not checks.calls


async def test_check_that_skips_skips_the_task(runs: Runs) -> None:
    assert await runs.start(trigger("skips")).outcome() == Skip("nothing to watch today")


async def test_no_check_runs_when_the_runtime_is_over(runs: Runs) -> None:
    outcome = await runs.start(trigger(limits=Limits.of(0, None, None))).outcome()
    assert outcome == Success(["pass", "stop"])
    assert not checks.calls


async def test_runtime_ends_the_pause_between_two_checks(runs: Runs) -> None:
    checks.results[:] = [("fail", "continue")]
    limited = trigger(limits=Limits.of(0.5, None, None))
    limited.rules["pace"]["interval"] = 600  # type: ignore[index]
    assert await runs.start(limited).outcome() == Success(["pass", "stop"])
    assert len(checks.calls) == 1


async def test_timeout_retriggers_with_the_last_result(runs: Runs) -> None:
    checks.results[:] = [("fail", "continue")]
    run = runs.start(trigger(timeout=1.0))
    assert await run.outcome() == Success(["fail", "retrigger"])
    assert (await run.wait()).state is WaitState.EXPIRED


async def test_timeout_without_any_result_retriggers_as_pass(runs: Runs) -> None:
    assert await runs.start(trigger("hangs", timeout=0.5)).outcome() == Success(["pass", "retrigger"])


async def test_timeout_of_a_soft_task_skips_it(runs: Runs) -> None:
    checks.results[:] = [("fail", "continue")]
    outcome = await runs.start(trigger(timeout=0.5, soft_fail=True)).outcome()
    assert isinstance(outcome, Skip)


async def test_timeout_stops_at_maxretrigger(runs: Runs) -> None:
    checks.results[:] = [("fail", "continue")]
    last = trigger(timeout=0.5, limits=Limits.of(None, None, 0))
    assert await runs.start(last).outcome() == Success(["fail", "stop"])


async def test_failures_before_a_restart_count_after_it(runs: Runs) -> None:
    checks.results[:] = [("fail", "retrigger")]
    attempt, needed = new_attempt(), Thresholds.of(1, 40)
    first = runs.start(trigger(thresholds=needed), attempt)
    await eventually(lambda: len(checks.calls) >= 20, "twenty checks")
    await first.kill_process()
    before = len(checks.calls)
    again = runs.start(trigger(thresholds=needed), attempt)
    assert await again.outcome() == Success(["fail", "retrigger"])
    # The killed process may have run one more check than it stored.
    assert len(checks.calls) <= 41
    assert len(checks.calls) > before


async def test_health_before_a_restart_is_the_last_result_at_the_timeout(runs: Runs) -> None:
    checks.results[:] = [("fail", "continue")]
    attempt = new_attempt()
    first = runs.start(trigger(timeout=2.0), attempt)
    while not (checks.calls and (await first.wait()).progress):
        await eventually(lambda: bool(checks.calls), "a check")
    await first.kill_process()
    assert await runs.start(trigger("hangs", timeout=2.0), attempt).outcome() == Success(
        ["fail", "retrigger"]
    )


async def test_settled_check_does_not_run_again(runs: Runs) -> None:
    checks.results[:] = [("pass", "retrigger"), ("fail", "stop")]
    attempt = new_attempt()
    assert await runs.start(trigger(), attempt).outcome() == Success(["pass", "retrigger"])
    assert await runs.start(trigger(), attempt).outcome() == Success(["pass", "retrigger"])
    assert len(checks.calls) == 1


async def test_two_triggerers_return_the_same_outcome(runs: Runs) -> None:
    checks.results[:] = [("pass", "continue"), ("pass", "retrigger"), ("fail", "stop")]
    attempt = new_attempt()
    one, other = runs.start(trigger(), attempt), runs.start(trigger(), attempt)
    assert await one.outcome() == await other.outcome()


async def test_unchanged_result_is_logged_once(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "task")
    checks.results[:] = [*[("pass", "continue")] * 10, ("pass", "stop")]
    await runs.start(trigger()).outcome()
    lines = [record.getMessage() for record in caplog.records if "The check returned" in record.getMessage()]
    assert len(lines) == 1


async def test_endtime_counts_from_the_reference_date_of_the_chain(runs: Runs) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1, hours=1)
    over = trigger(conf={"task-referencedate": yesterday.isoformat()}, limits=Limits.of(None, "00:00", None))
    assert await runs.start(over, new_attempt(task_id="task")).outcome() == Success(["pass", "stop"])


async def test_users_can_run_an_operator_in_their_own_tests() -> None:
    from airflow.sdk import DAG

    from deferrable_ops.operators.high_availability import HighAvailabilityOperator
    from deferrable_ops.testing import running

    checks.results[:] = [("pass", "stop")]
    with DAG("dag", schedule=None):
        task = HighAvailabilityOperator(
            task_id="ha", python_callable="unit.triggers.high_availability.support.scripted"
        )
    async with running(task) as under_test:
        assert await under_test.outcome() == Success(["pass", "stop"])


def runs_for_a_moment(dag_run: Any) -> float:
    return 0.3 if dag_run.conf["half_day"] else 3600


def is_slow() -> None:
    time.sleep(1)


async def test_function_computes_the_limit_of_the_run(runs: Runs) -> None:
    checks.results[:] = [("fail", "continue")]
    limits = Limits(runtime_function=f"{__name__}:runs_for_a_moment")
    outcome = await runs.start(trigger(conf={"half_day": True}, limits=limits)).outcome()
    assert outcome == Success(["pass", "stop"])
    assert checks.calls


async def test_function_that_fails_or_hangs_fails_the_task_and_names_it(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = runs.start(trigger(limits=Limits(runtime_function=f"{__name__}:runs_for_a_moment")))
    monkeypatch.setattr(triggers, "_LIMIT_SECONDS", 0.1)
    hangs = runs.start(trigger(limits=Limits(endtime_function=f"{__name__}:is_slow")))
    for run, named in ((fails, "KeyError: 'half_day'"), (hangs, "did not return within 0.1 s")):
        outcome = await run.outcome()
        assert isinstance(outcome, Failure)
        assert named in outcome.reason
