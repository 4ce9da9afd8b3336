"""A stream that keeps its name: a task replaces the running job once, and never a job that it may not replace."""

from __future__ import annotations

from typing import Any

import pytest
from unit.triggers.dataflow.support import BODY, launch
from unit.triggers.support import Run, Runs, eventually, new_attempt

from deferrable_ops.outcome import Failure, Success
from deferrable_ops.testing.dataflow import FakeDataflow, FakeJob, Step
from deferrable_ops.triggers.dataflow.request import WAIT_LABEL, job_name
from deferrable_ops.triggers.lifecycle.cancellation import cancel_due_work

RUNNING = Step("RUNNING")


@pytest.fixture(autouse=True)
def stream(fake: FakeDataflow) -> None:
    """Let each job be a stream that runs."""
    fake.script("stream", RUNNING, streaming=True)


def deploy(runs: Runs, **arguments: Any) -> Run:
    given = {"job_name": "stream", "append_job_name": False, "update": True, "expected_state": "running"}
    return launch(runs, **{**given, **arguments})


def create(fake: FakeDataflow, labels: dict[str, str] | None = None, name: str = "stream") -> FakeJob:
    job = fake.create(name, "my-project", "europe-west1", labels or {}, {})
    job.move("RUNNING")
    return job


async def test_running_stream_is_replaced_under_its_name(fake: FakeDataflow, runs: Runs) -> None:
    old = create(fake)
    run = deploy(runs, transform_name_mapping={"Read": "ReadOrders"})
    outcome = await run.outcome()
    new = fake.jobs()[-1]
    assert isinstance(outcome, Success)
    assert outcome.value["id"] == new.id == old.replaced_by
    assert (new.name, new.labels[WAIT_LABEL]) == ("stream", run.attempt.wait_id)
    parameters = new.request["launchParameter"]
    assert parameters["update"] is True
    assert parameters["transformNameMappings"] == {"Read": "ReadOrders"}
    assert old.stops_asked == []


async def test_classic_stream_is_replaced_under_its_name(fake: FakeDataflow, runs: Runs) -> None:
    old = create(fake)
    body = {"gcsPath": "gs://bucket/classic"}
    mapping = {"Read": "ReadOrders"}
    run = deploy(runs, kind="classic", body=body, transform_name_mapping=mapping)
    assert isinstance(await run.outcome(), Success)
    parameters = fake.job(old.replaced_by).request["launchParameters"]
    assert (parameters["update"], parameters["transformNameMapping"]) == (True, mapping)


@pytest.mark.parametrize("body", [BODY, {**BODY, "update": "true"}])
async def test_first_deployment_launches_a_job_without_an_update(
    fake: FakeDataflow, runs: Runs, body: dict[str, Any]
) -> None:
    finished = create(fake)
    finished.move("DRAINED")
    assert isinstance(await deploy(runs, body=body).outcome(), Success)
    assert "update" not in fake.jobs()[-1].request["launchParameter"]
    assert len(fake.jobs()) == 2


async def test_update_whose_reply_was_lost_is_found_by_its_label(fake: FakeDataflow, runs: Runs) -> None:
    old = create(fake)
    fake.trouble.lose_replies("LaunchFlexTemplate", code="UNAVAILABLE")
    outcome = await deploy(runs).outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["id"] == old.replaced_by
    assert len(fake.jobs()) == 2
    assert fake.trouble.calls["LaunchFlexTemplate"] == 1


async def test_stream_that_stops_is_waited_for_before_the_next_one_starts(
    fake: FakeDataflow, runs: Runs
) -> None:
    old = create(fake)
    old.move("DRAINING")
    run = deploy(runs)
    await eventually(lambda: fake.trouble.calls["ListJobs"] > 2, "another look at the job")
    assert fake.trouble.calls["LaunchFlexTemplate"] == 0
    old.move("DRAINED")
    assert isinstance(await run.outcome(), Success)
    assert len(fake.jobs()) == 2


async def test_stream_that_has_not_started_is_updated_once_it_runs(fake: FakeDataflow, runs: Runs) -> None:
    old = create(fake, {"team": "orders", WAIT_LABEL: "another-wait"})
    old.move("PENDING")
    run = deploy(runs)
    await eventually(lambda: fake.trouble.calls["ListJobs"] > 2, "another look at the job")
    assert fake.trouble.calls["LaunchFlexTemplate"] == 0
    old.move("RUNNING")
    assert isinstance(await run.outcome(), Success)
    assert old.replaced_by


async def test_without_update_an_active_job_with_the_name_fails_the_task(
    fake: FakeDataflow, runs: Runs
) -> None:
    old = create(fake)
    outcome = await deploy(runs, update=False).outcome()
    assert isinstance(outcome, Failure)
    assert old.id in outcome.reason
    assert "set update=True to replace that job" in outcome.reason
    assert len(fake.jobs()) == 1


async def test_cleared_task_does_not_stop_the_stream_that_another_task_has_put_in_place_of_its_own(
    fake: FakeDataflow, runs: Runs
) -> None:
    first = deploy(runs, expected_state="drained")
    await eventually(lambda: fake.trouble.calls["ListJobs"] > 1, "the job to be watched")
    await first.kill_process()
    second = deploy(runs, attempt=new_attempt())
    assert isinstance(await second.outcome(), Success)
    await runs.inbox.waits.kill([first.attempt.wait_id])
    await cancel_due_work(runs.inbox)
    assert [job.stops_asked for job in fake.jobs()] == [[], []]


async def test_killed_update_stops_its_own_job_only(fake: FakeDataflow, runs: Runs) -> None:
    finished = create(fake)
    finished.move("DRAINED")
    run = deploy(runs, expected_state="drained")
    await eventually(lambda: len(fake.jobs()) == 2, "the job")
    await eventually(lambda: fake.trouble.calls["ListJobs"] > 1, "the job to be watched")
    await run.kill_process()
    await runs.inbox.waits.kill([run.attempt.wait_id])
    await cancel_due_work(runs.inbox)
    assert [job.stops_asked for job in fake.jobs()] == [[], ["cancel"]]


@pytest.mark.parametrize("labels", [{}, {WAIT_LABEL: "another-wait"}])
async def test_active_job_that_the_launch_returns_is_not_adopted(
    fake: FakeDataflow, runs: Runs, labels: dict[str, str]
) -> None:
    attempt = new_attempt()
    # The list of jobs does not show the job yet, so the task launches.
    fake.list_lag = 3600
    fake.second_launch = "return"
    foreign = create(fake, labels, job_name("load_orders", attempt.wait_id))
    outcome = await launch(runs, attempt=attempt).outcome()
    assert isinstance(outcome, Failure)
    assert f"answered the launch with the job {foreign.id}" in outcome.reason
    await cancel_due_work(runs.inbox)
    assert foreign.stops_asked == []
