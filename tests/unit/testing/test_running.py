"""What users test their DAGs with."""

from __future__ import annotations

import pytest

from deferrable_ops import Failure, Skip, Success
from deferrable_ops.operators.webhook import WebhookOperator, WebhookSensor
from deferrable_ops.testing import outside_service, running


@pytest.fixture(autouse=True)
def endpoint_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__ENDPOINT_URL", "https://airflow.example.com/deferrable-ops")


async def test_operator_launches_and_ends_with_what_the_callback_says() -> None:
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


async def test_refused_launch_fails_with_the_answer() -> None:
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
