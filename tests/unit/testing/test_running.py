"""deferrable_ops.testing: what users test their DAGs with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.providers.standard.operators.python import PythonOperator

from deferrable_ops import Failure, Skip, Success
from deferrable_ops.events import ChannelEvent
from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.events import EventSensor
from deferrable_ops.operators.webhook import WebhookOperator, WebhookOperatorMixin, WebhookSensor
from deferrable_ops.testing import outside_service, running


@pytest.fixture(autouse=True)
def endpoint_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__ENDPOINT_URL", "https://airflow.example.com/deferrable-ops")


async def test_operator_launches_and_ends_with_the_callbacks_outcome() -> None:
    async with outside_service() as service:
        operator = WebhookOperator(
            task_id="train",
            url=service.url + "/train",
            json={"notify": "${callback_url}"},
            success_when="state == 'done'",
            result="metrics",
        )
        async with running(operator) as task:
            request = await service.next_request()
            assert request.body["notify"].startswith("https://airflow.example.com/deferrable-ops/callbacks/")
            assert request.headers["idempotency-key"] == task.attempt.wait_id

            assert (await task.call_back({"state": "running"}))[0] == 202
            assert (await task.call_back({"state": "done", "metrics": {"auc": 0.9}}))[0] == 200
            assert await task.outcome() == Success({"auc": 0.9})


async def test_rejected_launch_fails_with_the_answer() -> None:
    async with outside_service() as service:
        service.answers = [(422, {"error": "no such model"})]
        async with running(WebhookOperator(task_id="train", url=service.url)) as task:
            outcome = await task.outcome()
    assert isinstance(outcome, Failure)
    assert "422" in outcome.reason
    assert "no such model" in outcome.reason


async def test_sensor_can_be_failed_skipped_and_timed_out() -> None:
    async with running(WebhookSensor(task_id="approved")) as task:
        await task.call_back({"reason": "no", "retryable": False}, "failure")
        assert await task.outcome() == Failure("no", retryable=False)
    async with running(WebhookSensor(task_id="approved")) as task:
        await task.call_back({"reason": "nothing to approve"}, "skip")
        assert await task.outcome() == Skip("nothing to approve")
    async with running(WebhookSensor(task_id="approved", timeout=0.2)) as task:
        outcome = await task.outcome()
        assert isinstance(outcome, Failure)
        assert "timeout" in outcome.reason


async def test_sensor_that_publishes_its_url_waits_without_a_triggerer() -> None:
    async with running(WebhookSensor(task_id="approved", publish_url=True)) as task:
        await task.call_back({"by": "ann"})
        assert await task.outcome() == Success({"by": "ann"})


async def test_task_that_runs_code_on_a_worker_is_refused_with_the_alternative() -> None:
    class Launch(WebhookOperatorMixin, PythonOperator):
        pass

    with pytest.raises(InputError, match=r"Launch is neither\. Use dag\.test\(\) for a task"):
        async with running(Launch(task_id="launch", python_callable=print)):  # type: ignore[arg-type]
            pass


async def test_next_request_times_out() -> None:
    async with outside_service() as service:
        with pytest.raises(AssertionError, match=r"no request was received within 0\.05 s"):
            await service.next_request(within=0.05)


def test_cancellable_task_runs_without_a_configured_airflow(tmp_path: Path) -> None:
    code = """
import asyncio
from deferrable_ops.operators.webhook import WebhookSensor
from deferrable_ops.testing import running

async def main():
    sensor = WebhookSensor(task_id="a", cancel_request={"url": "https://jobs.example.com/${wait_id}"})
    async with running(sensor) as task:
        await task.call_back(1)
        print(await task.outcome())

asyncio.run(main())
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW__")}
    environment |= {
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__DEFERRABLE_OPS__ENDPOINT_URL": "https://airflow.example.com/deferrable-ops",
    }
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "Success(value=1)" in run.stdout, run.stderr


async def test_sensor_receives_a_published_event() -> None:
    signoff = ChannelEvent("signoff", match={"run": "r1", "headers": {"x-by": "ada"}})
    async with running(EventSensor(task_id="signed", event=signoff)) as task:
        await task.publish("signoff", {"run": "r1"})
        await task.publish("signoff", {"run": "r1"}, headers={"x-by": "ada"})
        outcome = await task.outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["attributes"]["headers"] == {"x-by": "ada"}
