"""Jobs are stopped by id or name prefix, and the task waits until they are finished."""

from __future__ import annotations

from typing import Any

import pytest
from unit.triggers.dataflow.support import PLACE
from unit.triggers.support import Runs, eventually

from deferrable_ops.outcome import Failure, Success
from deferrable_ops.testing.dataflow import FakeDataflow, FakeJob, service
from deferrable_ops.triggers.dataflow.triggers import DataflowStopTrigger
from deferrable_ops.upstreams.dataflow.jobs import RUNNING


def running_job(fake: FakeDataflow, name: str, streaming: bool = False, stop_seconds: float = 0.0) -> FakeJob:
    fake.script(name, streaming=streaming, stop_seconds=stop_seconds)
    job = fake.create(name, "my-project", "europe-west1", {}, {})
    job.move("RUNNING")
    return job


def stop(**arguments: Any) -> DataflowStopTrigger:
    return DataflowStopTrigger(**PLACE, **arguments)


@pytest.mark.parametrize(
    "how, streaming, asked, state",
    [
        ("cancel", True, "cancel", "JOB_STATE_CANCELLED"),
        ("drain", True, "drain", "JOB_STATE_DRAINED"),
        ("drain", False, "cancel", "JOB_STATE_CANCELLED"),
    ],
)
async def test_job_is_stopped_and_its_final_state_is_returned(
    fake: FakeDataflow, runs: Runs, how: str, streaming: bool, asked: str, state: str
) -> None:
    job = running_job(fake, "etl", streaming, stop_seconds=0.2)
    outcome = await runs.start(stop(job_id=job.id, how=how)).outcome()
    assert isinstance(outcome, Success)
    assert (outcome.value["id"], outcome.value["currentState"]) == (job.id, state)
    assert job.stops_asked == [asked]


async def test_streaming_job_that_has_not_started_is_cancelled_instead_of_drained(
    fake: FakeDataflow, runs: Runs
) -> None:
    job = running_job(fake, "etl", streaming=True)
    job.move("QUEUED")
    assert isinstance(await runs.start(stop(job_id=job.id, how="drain")).outcome(), Success)
    assert job.stops_asked == ["cancel"]


async def test_finished_job_is_not_an_error(fake: FakeDataflow, runs: Runs) -> None:
    job = running_job(fake, "etl")
    job.move("DONE")
    outcome = await runs.start(stop(job_id=job.id)).outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["currentState"] == "JOB_STATE_DONE"
    assert job.stops_asked == []


async def test_all_active_jobs_with_the_prefix_are_stopped_and_no_other(
    fake: FakeDataflow, runs: Runs
) -> None:
    jobs = [running_job(fake, name) for name in ("etl-a", "etl-b", "report", "etl-c")]
    jobs[3].move("DONE")
    outcome = await runs.start(stop(job_name_prefix="etl-")).outcome()
    assert isinstance(outcome, Success)
    assert sorted(job["id"] for job in outcome.value) == sorted(job.id for job in jobs[:2])
    assert [job.stops_asked for job in jobs] == [["cancel"], ["cancel"], [], []]


@pytest.mark.parametrize("state", ["STOPPED", "QUEUED", "PENDING", "DRAINING", "PAUSED"])
async def test_prefix_finds_jobs_that_the_list_of_active_jobs_omits(
    fake: FakeDataflow, runs: Runs, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(service, "NOT_ACTIVE", set(range(15)) - {RUNNING})
    job = running_job(fake, "etl-a", streaming=True)
    job.move(state)
    outcome = await runs.start(stop(job_name_prefix="etl-")).outcome()
    assert isinstance(outcome, Success)
    assert job.stops_asked == ["cancel"]


async def test_stop_that_is_impossible_in_the_jobs_state_is_repeated(
    fake: FakeDataflow, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DataflowStopTrigger, "longest_retry_pause", 0.05)
    job = running_job(fake, "etl")
    fake.trouble.fail("UpdateJob", "FAILED_PRECONDITION", times=12)
    assert isinstance(await runs.start(stop(job_id=job.id)).outcome(), Success)
    assert fake.trouble.calls["UpdateJob"] == 13


async def test_prefix_without_a_job_is_not_an_error(fake: FakeDataflow, runs: Runs) -> None:
    assert await runs.start(stop(job_name_prefix="etl-")).outcome() == Success([])


async def test_restart_waits_for_the_jobs_that_were_selected_before(fake: FakeDataflow, runs: Runs) -> None:
    job = running_job(fake, "etl", stop_seconds=3600)
    first = runs.start(stop(job_name_prefix="etl"))
    await eventually(lambda: job.stops_asked, "the job to be stopped")
    await first.kill_process()
    job.move("CANCELLED")
    outcome = await runs.start(stop(job_name_prefix="etl"), attempt=first.attempt).outcome()
    assert isinstance(outcome, Success)
    assert [job["id"] for job in outcome.value] == [job.id]


async def test_task_that_does_not_wait_ends_once_the_request_is_accepted(
    fake: FakeDataflow, runs: Runs
) -> None:
    job = running_job(fake, "etl", stop_seconds=3600)
    outcome = await runs.start(stop(job_id=job.id, wait_until_finished=False)).outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["currentState"] == "JOB_STATE_CANCELLING"


async def test_job_that_is_updated_meanwhile_is_stopped_under_its_new_id(
    fake: FakeDataflow, runs: Runs
) -> None:
    job = running_job(fake, "etl", stop_seconds=3600)
    run = runs.start(stop(job_id=job.id))
    await eventually(lambda: job.stops_asked, "the job to be stopped")
    replacement = fake.job(fake.replace("etl"))
    replacement.stop_seconds = 0.0
    outcome = await run.outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["id"] == replacement.id
    assert replacement.stops_asked == ["cancel"]


@pytest.mark.parametrize(
    "how, permission", [("cancel", "dataflow.jobs.cancel"), ("drain", "dataflow.jobs.updateContents")]
)
async def test_refusal_names_the_permission(
    fake: FakeDataflow, runs: Runs, how: str, permission: str
) -> None:
    job = running_job(fake, "etl", streaming=True)
    fake.trouble.fail("UpdateJob", "PERMISSION_DENIED", times=None)
    outcome = await runs.start(stop(job_id=job.id, how=how)).outcome()
    assert isinstance(outcome, Failure)
    assert permission in outcome.reason


async def test_empty_prefix_stops_nothing(fake: FakeDataflow, runs: Runs) -> None:
    job = running_job(fake, "etl")
    outcome = await runs.start(stop(job_name_prefix=" ")).outcome()
    assert isinstance(outcome, Failure)
    assert "would stop every job of the region" in outcome.reason
    assert job.stops_asked == []
