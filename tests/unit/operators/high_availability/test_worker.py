"""Checks that only a worker can import: each run, and the state between two."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskDeferred

from deferrable_ops.high_availability.results import SKIPPED_TASKS
from deferrable_ops.inbox import Wait, WaitState, use_inbox
from deferrable_ops.inbox.large_values import run_sync
from deferrable_ops.operators.base import attempt_of
from deferrable_ops.operators.high_availability import HighAvailabilityOperator
from deferrable_ops.outcome import Skip, Success
from real_airflow import wait_until


@pytest.fixture(autouse=True)
def _inbox(inbox_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite+aiosqlite:///{inbox_file}"
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", url)


class Worker:
    """Runs a task like a series of workers, deferred in between."""

    def __init__(self, check: Callable[..., Any], **arguments: Any) -> None:
        dag_run = {
            "dag_id": "dag",
            "run_id": uuid4().hex,
            "run_type": "manual",
            "conf": arguments.pop("conf", {}),
            "start_date": datetime.now(UTC),
        }
        ti = SimpleNamespace(id=str(uuid4()), try_number=1, dag_id="dag", task_id="ha", map_index=-1)
        ti.run_id = dag_run["run_id"]
        self.xcoms: dict[str, Any] = {}
        ti.xcom_push = lambda key, value: self.xcoms.update({key: value})
        self.context: Any = {
            "ti": ti,
            "dag_run": SimpleNamespace(**dag_run),
            "params": {},
            "ds": "2026-01-01",
        }
        with DAG("dag", schedule=None):
            self.task = HighAvailabilityOperator(
                **{"task_id": "ha", "python_callable": check, "poke_interval": 60, **arguments}
            )
        self.deferred: list[TaskDeferred] = []

    def run_once(self) -> Any:
        """Return the task's value; None when it is deferred."""
        try:
            return (
                self.task.check_again(self.context, {"check": "due"})
                if self.deferred
                else self.task.execute(self.context)
            )
        except TaskDeferred as deferred:
            self.deferred.append(deferred)
            return None

    def wait(self) -> Wait:
        """Return the task's row in the inbox."""

        async def read() -> Wait:
            async with use_inbox(retry_timeout=10) as inbox:
                return await inbox.waits.get(attempt_of(self.context).wait_id)

        return run_sync(read())


def returning(*results: Any) -> Callable[..., Any]:
    left = list(results)
    return lambda **context: left.pop(0)


def test_task_is_deferred_until_the_next_check() -> None:
    worker = Worker(returning(("pass", "continue"), ("fail", "stop")))
    assert worker.run_once() is None
    [deferred] = worker.deferred
    assert deferred.method_name == "check_again"
    assert deferred.trigger.until == pytest.approx(time.time() + 60, abs=5)
    assert worker.run_once() == ["fail", "stop"]
    assert worker.wait().outcome == Success(["fail", "stop"])
    skipped = [f"ha-{gate}" for gate in ("stop-pass", "retrigger-pass", "retrigger-fail")]
    assert worker.xcoms == {"skipmixin_key": {"skipped": skipped}}


def test_worker_reason_and_fix_are_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    worker = Worker(returning(("pass", "continue"), ("pass", "continue"), ("pass", "stop")))
    for _ in range(3):
        worker.run_once()
    [line_found] = [line for line in capsys.readouterr().out.splitlines() if "runs on a worker" in line]
    assert "python_callable is a lambda" in line_found
    assert "plugins folder" in line_found


def test_failures_in_a_row_are_counted_across_workers() -> None:
    worker = Worker(returning(*[("fail", "retrigger")] * 3), failure_threshold=3)
    assert [worker.run_once() for _ in range(3)] == [None, None, ["fail", "retrigger"]]


@pytest.mark.parametrize(
    "check, decided",
    [
        (lambda: sys.exit("that is all"), ["fail", "retrigger"]),
        (lambda: 1 / 0, ["fail", "retrigger"]),
        (lambda: time.sleep(30), ["fail", "retrigger"]),
        (lambda: "who knows", ["fail", "stop"]),
    ],
    ids=["exits", "raises", "hangs", "nonsense"],
)
def test_broken_check_counts_as_in_a_triggerer(check: Any, decided: list[str]) -> None:
    assert Worker(check, check_timeout=0.3).run_once() == decided


def test_coroutine_check_gets_the_complete_context() -> None:
    seen: list[Any] = []

    async def check(url: str, ds: str, **context: Any) -> Any:
        seen.append((url, ds, context["ti"].task_id, context["more"]))
        return "pass", "stop"

    assert Worker(check, op_args=["https://x"], op_kwargs={"more": 1}).run_once() == ["pass", "stop"]
    assert seen == [("https://x", "2026-01-01", "ha", 1)]


def test_check_that_skips_skips_the_task() -> None:
    def check() -> None:
        raise AirflowSkipException("not today")

    worker = Worker(check)
    with pytest.raises(AirflowSkipException, match="not today"):
        worker.run_once()
    assert worker.wait().outcome == Skip("not today")


def test_timeout_retriggers_with_the_last_result_and_without_another_check() -> None:
    worker = Worker(returning(("fail", "continue")), timeout=0.5)
    assert worker.run_once() is None
    assert worker.deferred[0].trigger.until <= worker.wait().deadline
    deadline = worker.wait().deadline
    wait_until(lambda: time.time() >= deadline, "the timeout to be over")
    assert worker.run_once() == ["fail", "retrigger"]


def test_timeout_of_a_soft_task_skips_it() -> None:
    worker = Worker(returning(("fail", "continue")), timeout=0.5, soft_fail=True)
    worker.run_once()
    deadline = worker.wait().deadline
    wait_until(lambda: time.time() >= deadline, "the timeout to be over")
    with pytest.raises(AirflowSkipException):
        worker.run_once()


def test_no_check_runs_when_a_limit_is_over() -> None:
    long_ago = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    worker = Worker(returning(), runtime=60, conf={"ha-referencedate": long_ago})
    assert worker.run_once() == ["pass", "stop"]


def test_ended_attempt_does_not_check_again() -> None:
    worker = Worker(returning(("pass", "stop")))
    assert worker.run_once() == ["pass", "stop"]
    assert worker.run_once() == ["pass", "stop"]


class Pushes:
    """A check that is a class."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, ti: Any) -> tuple[str, str]:
        ti.xcom_push(key=self.key, value=1)
        return "pass", "stop"


def test_class_that_needs_a_worker_is_instantiated_there() -> None:
    worker = Worker(Pushes, op_kwargs={"key": "healthy"})
    pushed: list[str] = []
    worker.context["ti"].xcom_push = lambda key, value: pushed.append(key)
    assert worker.run_once() == ["pass", "stop"]
    assert pushed == ["healthy", SKIPPED_TASKS]


def test_check_whose_argument_the_run_does_not_have_fails_and_does_not_retrigger() -> None:
    worker = Worker(lambda ts: ("pass", "stop"))
    with pytest.raises(AirflowFailException, match="required parameter 'ts'"):
        worker.run_once()
    assert worker.wait().state is WaitState.FAILED
