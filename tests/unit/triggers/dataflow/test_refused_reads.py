"""A read that Dataflow refuses neither fails a task nor stops its job, and a retry adopts the job."""

from __future__ import annotations

import asyncio

import pytest
from unit.triggers.dataflow.support import launch
from unit.triggers.support import Run, Runs, eventually, new_attempt

from deferrable_ops.outcome import Failure, Success
from deferrable_ops.testing.dataflow import FakeDataflow, Step
from deferrable_ops.triggers.dataflow import follow
from deferrable_ops.triggers.lifecycle.cancellation import cancel_due_work

RUNNING = Step("RUNNING")


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "UNAUTHENTICATED", "NOT_FOUND"])
@pytest.mark.parametrize("method", ["ListJobs", "GetJob"])
async def test_refused_read_neither_fails_the_task_nor_stops_the_job(
    fake: FakeDataflow, runs: Runs, method: str, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    fake.script("load", RUNNING)
    run = launch(runs, expected_state="done")
    await eventually(lambda: fake.trouble.calls["ListJobs"] > 2, "the job to be watched")
    fake.trouble.fail(method, code, times=2)
    if method == "ListJobs":
        lists = fake.trouble.calls[method]
        await eventually(lambda: fake.trouble.calls[method] > lists + 1, "the refused lists")
    fake.move("load", "DONE")
    assert isinstance(await run.outcome(), Success)
    assert fake.job("load").stops_asked == []
    assert len(fake.jobs()) == 1


async def test_retry_adopts_the_job_that_its_predecessor_could_not_read(
    fake: FakeDataflow, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.script("load", RUNNING)

    def broken(*_: object) -> None:
        raise KeyError("a fault of this program")

    first = launch(runs)
    await eventually(lambda: fake.trouble.calls["ListJobs"] > 2, "the job to be watched")
    monkeypatch.setattr(follow, "interpret_state", broken)
    await first.kill_process()
    failed = await launch(runs, attempt=first.attempt).outcome()
    assert isinstance(failed, Failure)
    assert failed.retryable
    assert (await first.wait()).cancel is None
    monkeypatch.undo()
    second = launch(runs, attempt=new_attempt(2, of=first.attempt), expected_state="running")
    outcome = await second.outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["id"] == fake.job("load").id
    assert len(fake.jobs()) == 1
    assert fake.job("load").stops_asked == []


async def failed_while_its_job_runs(fake: FakeDataflow, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return an attempt that failed because of a bug, while its job runs."""
    fake.script("load", RUNNING)
    run = launch(runs)
    await eventually(lambda: fake.trouble.calls["ListJobs"] > 2, "the job to be watched")
    await run.kill_process()
    with monkeypatch.context() as broken:
        broken.delattr(follow, "interpret_state")
        assert isinstance(await launch(runs, attempt=run.attempt).outcome(), Failure)
    return run


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED", "NOT_FOUND"])
async def test_retry_that_cannot_read_the_job_of_its_predecessor_adopts_it(
    fake: FakeDataflow, runs: Runs, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    first = await failed_while_its_job_runs(fake, runs, monkeypatch)
    fake.trouble.fail("GetJob", code, times=3)
    second = launch(runs, attempt=new_attempt(2, of=first.attempt), expected_state="running")
    outcome = await second.outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["id"] == fake.job("load").id
    assert [job.stops_asked for job in fake.jobs()] == [[]]


async def test_killed_retry_stops_the_job_that_it_adopted_without_reading_it(
    fake: FakeDataflow, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await failed_while_its_job_runs(fake, runs, monkeypatch)
    fake.trouble.fail("GetJob", "PERMISSION_DENIED", times=None)
    reads = fake.trouble.calls["GetJob"]
    second = launch(runs, attempt=new_attempt(2, of=first.attempt))
    await eventually(lambda: fake.trouble.calls["GetJob"] > reads, "a refused read")
    while (await second.wait()).launched_at is None:
        await asyncio.sleep(0.01)
    await second.kill_process()
    fake.trouble.mend()
    await runs.inbox.waits.kill([second.attempt.wait_id])
    await cancel_due_work(runs.inbox)
    assert [job.stops_asked for job in fake.jobs()] == [["cancel"]]


async def test_retry_launches_a_job_if_the_job_of_its_predecessor_is_gone(
    fake: FakeDataflow, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await failed_while_its_job_runs(fake, runs, monkeypatch)
    fake.trouble.fail("GetJob", "NOT_FOUND", times=None)
    second = launch(runs, attempt=new_attempt(2, of=first.attempt), expected_state="running")
    await eventually(lambda: len(fake.jobs()) == 2, "the second job")
    fake.trouble.mend()
    assert isinstance(await second.outcome(), Success)


@pytest.mark.usefixtures("final_soon")
async def test_job_that_is_not_found_for_minutes_is_gone(fake: FakeDataflow, runs: Runs) -> None:
    fake.script("load", RUNNING, list_lag=3600)
    fake.trouble.fail("GetJob", "NOT_FOUND", times=None)
    outcome = await launch(runs).outcome()
    assert isinstance(outcome, Failure)
    assert outcome.retryable
    assert f"the job {fake.job('load').id} does not exist any more" in outcome.reason


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED", "NOT_FOUND"])
async def test_single_refused_list_before_the_launch_does_not_fail_the_task(
    fake: FakeDataflow, runs: Runs, code: str
) -> None:
    fake.trouble.fail("ListJobs", code)
    assert isinstance(await launch(runs).outcome(), Success)
    assert len(fake.jobs()) == 1
