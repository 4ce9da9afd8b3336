"""Waiting for a callback, in ten examples. Each runs the trigger of an operator as a triggerer would."""

from __future__ import annotations

from datetime import timedelta

import pytest

from deferrable_ops import Failure, Skip, Success
from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.webhook import WebhookOperator, WebhookSensor
from deferrable_ops.testing import outside_service, running


async def test_operator_sends_one_request_and_waits_for_its_callback() -> None:
    """``${callback_url}`` becomes a URL that ends this task and no other. The posted JSON is the task's XCom."""
    async with outside_service() as service:
        train = WebhookOperator(
            task_id="train", url=f"{service.url}/train", json={"notify": "${callback_url}"}
        )
        async with running(train) as task:
            request = await service.next_request()
            assert request.method == "POST"
            assert request.body["notify"].startswith("https://airflow.example.com/deferrable-ops/callbacks/")

            await task.call_back({"accuracy": 0.9})
            assert await task.outcome() == Success({"accuracy": 0.9})
    assert len(service.requests) == 1


async def test_header_carries_the_url_when_no_placeholder_is_used() -> None:
    """A service that expects a fixed body finds the URL in ``Callback-Url``."""
    async with outside_service() as service:
        train = WebhookOperator(task_id="train", url=service.url, json={"model": "churn"})
        async with running(train) as task:
            request = await service.next_request()
            assert request.body == {"model": "churn"}
            assert "/callbacks/" in request.headers["callback-url"]
            await task.call_back(None)
            assert await task.outcome() == Success(None)


async def test_launch_carries_one_idempotency_key_per_attempt() -> None:
    """The key is the wait's id. A request that is sent again has the same key, so the service starts one job."""
    async with outside_service() as service:
        service.answers = [(503, {"error": "busy"})]
        async with running(WebhookOperator(task_id="train", url=service.url)) as task:
            await service.next_request()
            await service.next_request()
            keys = {request.headers["idempotency-key"] for request in service.requests}
            assert keys == {task.attempt.wait_id}


async def test_expressions_decide_what_a_callback_means() -> None:
    """`success_when`, `failure_when` and `result` are JMESPath. A callback for which neither is true is progress."""
    async with outside_service() as service:
        train = WebhookOperator(
            task_id="train",
            url=service.url,
            success_when="state == 'done'",
            failure_when="state == 'failed'",
            result="metrics",
        )
        async with running(train) as task:
            status, _ = await task.call_back({"state": "running"})
            assert status == 202

            status, _ = await task.call_back({"state": "done", "metrics": {"auc": 0.9}})
            assert status == 200
            assert await task.outcome() == Success({"auc": 0.9})


async def test_failure_fails_the_task_with_the_reason_of_the_service() -> None:
    """``"retryable": false`` tells Airflow not to retry, whatever `retries` is."""
    async with running(WebhookSensor(task_id="approved")) as task:
        await task.call_back({"reason": "rejected by Ann", "retryable": False}, "failure")
        assert await task.outcome() == Failure("rejected by Ann", retryable=False)


async def test_skip_skips_the_task() -> None:
    """The service can skip the task, for example because there is no data today."""
    async with running(WebhookSensor(task_id="approved")) as task:
        await task.call_back({"reason": "no data today"}, "skip")
        assert await task.outcome() == Skip("no data today")


async def test_refused_launch_fails_with_the_answer() -> None:
    """A 4xx status ends the task at once: the same request would be refused again."""
    async with outside_service() as service:
        service.answers = [(422, {"error": "no such model"})]
        async with running(WebhookOperator(task_id="train", url=service.url)) as task:
            outcome = await task.outcome()
    assert isinstance(outcome, Failure)
    assert not outcome.retryable
    assert "422" in outcome.reason
    assert "no such model" in outcome.reason


async def test_only_the_first_end_counts() -> None:
    """A wait settles once. The same callback again gets the first answer; another one gets 409."""
    async with running(WebhookSensor(task_id="approved")) as task:
        first = await task.call_back({"by": "ann"})
        again = await task.call_back({"by": "ann"})
        other_status, _ = await task.call_back({"by": "bob"})
        assert first == again
        assert other_status == 409
        assert await task.outcome() == Success({"by": "ann"})


async def test_sensor_fails_when_its_timeout_passes() -> None:
    """The deadline is stored with the wait: a restart of the triggerer does not extend it."""
    async with running(WebhookSensor(task_id="approved", timeout=timedelta(seconds=0.2))) as task:
        outcome = await task.outcome()
    assert isinstance(outcome, Failure)
    assert "timeout" in outcome.reason


def test_wrong_argument_is_an_error_when_the_dag_is_parsed() -> None:
    """The message names the argument and what it must be."""
    with pytest.raises(InputError, match="url= must be a full"):
        WebhookOperator(task_id="train", url="jobs.example.com/train")
