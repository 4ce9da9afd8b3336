"""Launching a Dataflow job and waiting for it, in ten examples. ``fake_dataflow`` is a Dataflow on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from deferrable_ops import Failure, Success
from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.dataflow import (
    DataflowFlexTemplateOperator,
    DataflowJobSensor,
    DataflowStopJobOperator,
    DataflowTemplateOperator,
    DeferrableDataflowOperator,
)
from deferrable_ops.testing import running
from deferrable_ops.testing.dataflow import FakeDataflow, Step, fake_dataflow

PLACE: dict[str, Any] = {"project_id": "my-project", "region": "europe-west1", "poll_interval": 0.2}
BODY = {"containerSpecGcsPath": "gs://my-templates/orders.json", "parameters": {"date": "2026-01-01"}}


@pytest.fixture
async def dataflow() -> AsyncIterator[FakeDataflow]:
    """Run a Dataflow on loopback, which the library's setting names meanwhile."""
    async with fake_dataflow() as fake:
        yield fake


async def test_flex_template_is_launched_and_its_job_is_the_result(dataflow: FakeDataflow) -> None:
    """The job's name begins with the task's id; a hash of the attempt follows."""
    load = DataflowFlexTemplateOperator(task_id="load_orders", body=BODY, **PLACE)
    async with running(load) as task:
        outcome = await task.outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["name"].startswith("load-orders-")
    assert outcome.value["currentState"] == "JOB_STATE_DONE"


async def test_classic_template_takes_the_arguments_of_the_google_provider(dataflow: FakeDataflow) -> None:
    """`template`, `parameters` and `environment`, as DataflowTemplatedJobStartOperator has them."""
    count = DataflowTemplateOperator(
        task_id="count_words",
        template="gs://dataflow-templates/latest/Word_Count",
        parameters={"output": "gs://my-bucket/out"},
        **PLACE,
    )
    async with running(count) as task:
        assert isinstance(await task.outcome(), Success)
    assert len(dataflow.jobs("count-words")) == 1


async def test_lost_answer_launches_no_second_job(dataflow: FakeDataflow) -> None:
    """The request arrived but its answer did not: the job is found by its name and its label."""
    dataflow.trouble.lose_replies("LaunchFlexTemplate", code="UNAVAILABLE")
    async with running(DataflowFlexTemplateOperator(task_id="load_orders", body=BODY, **PLACE)) as task:
        assert isinstance(await task.outcome(), Success)
    assert len(dataflow.jobs("load-orders")) == 1


async def test_failed_job_fails_the_task_with_its_error_messages(dataflow: FakeDataflow) -> None:
    """The job's ERROR messages are the reason of the failure."""
    dataflow.script("load-orders", Step("RUNNING"))
    async with running(DataflowFlexTemplateOperator(task_id="load_orders", body=BODY, **PLACE)) as task:
        await task.wait()
        while not dataflow.jobs("load-orders"):
            await task.wait()
        dataflow.say("load-orders", "table orders not found", "ERROR")
        dataflow.move("load-orders", "FAILED")
        outcome = await task.outcome()
    assert isinstance(outcome, Failure)
    assert "table orders not found" in outcome.reason


async def test_cancelled_job_fails_the_task(dataflow: FakeDataflow) -> None:
    """A job that somebody cancelled has not done its work."""
    dataflow.script("load-orders", Step("RUNNING"), Step("CANCELLED", after=0.2))
    async with running(DataflowFlexTemplateOperator(task_id="load_orders", body=BODY, **PLACE)) as task:
        outcome = await task.outcome()
    assert isinstance(outcome, Failure)
    assert "cancelled" in outcome.reason


async def test_streaming_job_is_waited_for_until_it_runs(dataflow: FakeDataflow) -> None:
    """`expected_state` changes that; a batch job is waited for until it is done."""
    dataflow.script("stream", Step("PENDING"), Step("RUNNING", after=0.2), streaming=True)
    async with running(DataflowFlexTemplateOperator(task_id="stream", body=BODY, **PLACE)) as task:
        outcome = await task.outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["currentState"] == "JOB_STATE_RUNNING"


async def test_passing_error_does_not_fail_the_wait(dataflow: FakeDataflow) -> None:
    """Unavailable, quota, a lost connection: the wait continues until its deadline."""
    dataflow.trouble.fail("ListJobs", code="UNAVAILABLE", times=3)
    async with running(DataflowFlexTemplateOperator(task_id="load_orders", body=BODY, **PLACE)) as task:
        assert isinstance(await task.outcome(), Success)


async def test_sensor_waits_for_a_job_that_something_else_launched(dataflow: FakeDataflow) -> None:
    """It never stops the job."""
    job = dataflow.create("nightly", "my-project", "europe-west1", {}, {})
    async with running(DataflowJobSensor(task_id="nightly_done", job_id=job.id, **PLACE)) as task:
        assert isinstance(await task.outcome(), Success)


async def test_stop_operator_stops_every_job_of_a_prefix(dataflow: FakeDataflow) -> None:
    """`how` is "cancel" or "drain". The task ends when the jobs have ended."""
    dataflow.script("orders-stream", Step("RUNNING"), streaming=True)
    for number in (1, 2):
        dataflow.create(f"orders-stream-{number}", "my-project", "europe-west1", {}, {})
    stop = DataflowStopJobOperator(task_id="stop", job_name_prefix="orders-stream", how="cancel", **PLACE)
    async with running(stop) as task:
        assert isinstance(await task.outcome(), Success)
    assert {job["state"] for job in dataflow.report()["jobs"]} == {"CANCELLED"}


def test_dag_of_the_older_operator_needs_another_import_only() -> None:
    """A wrong argument is an error when the DAG is parsed, and the message names it."""
    with pytest.raises(InputError, match="region"):
        DeferrableDataflowOperator(
            task_id="load", trigger_kwargs={"project_id": "my-project", "body": {"job_name": "load", **BODY}}
        )
