"""A trigger follows a job to the expected state, through updates and errors, and logs its messages once."""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import unquote

import pytest
from unit.triggers.dataflow.support import PLACE, launch
from unit.triggers.support import AirflowComms, Run, Runs, eventually

from deferrable_ops.outages import outages
from deferrable_ops.outcome import Failure, Success
from deferrable_ops.testing.dataflow import FakeDataflow, Step
from deferrable_ops.triggers.dataflow import follow
from deferrable_ops.triggers.dataflow.follow import DataflowTrigger
from deferrable_ops.triggers.dataflow.triggers import DataflowJobTrigger

RUNNING = Step("RUNNING")


async def watched(fake: FakeDataflow, run: Run) -> None:
    """Return after a few more polls of the run's job."""
    seen = fake.trouble.calls["ListJobs"]
    await eventually(
        lambda: fake.trouble.calls["ListJobs"] > seen + 2 or run.task.done(), "the job to be watched"
    )


@pytest.mark.parametrize(
    "streaming, expected, steps, ends_well",
    [
        (False, None, ["RUNNING", "DONE"], True),
        (False, "running", ["RUNNING"], True),
        (True, None, ["RUNNING"], True),
        (True, "running", ["RUNNING", "DRAINING", "DRAINED"], True),
        (True, "drained", ["RUNNING", "DRAINING", "DRAINED"], True),
        (True, "drained", ["RUNNING", "DONE"], True),
        (True, "done", ["RUNNING", "DRAINED"], False),
        (True, None, ["RUNNING", "CANCELLED"], False),
        (False, None, ["RUNNING", "CANCELLING", "CANCELLED"], False),
        (False, None, ["RUNNING", "FAILED"], False),
        (False, None, ["RUNNING", "PAUSING", "PAUSED", "RUNNING", "RESOURCE_CLEANING_UP", "DONE"], True),
        (False, None, ["STOPPED", "PENDING", 99, "DONE"], True),
    ],
)
async def test_outcome_follows_from_the_final_state(
    fake: FakeDataflow, runs: Runs, streaming: bool, expected: str | None, steps: list[Any], ends_well: bool
) -> None:
    fake.script("load", *map(Step, steps), streaming=streaming)
    outcome = await launch(runs, expected_state=expected).outcome()
    assert isinstance(outcome, Success if ends_well else Failure)


@pytest.mark.parametrize(
    "expected, steps, ends_well",
    [
        (["JOB_STATE_DONE", "JOB_STATE_CANCELLED"], ["RUNNING", "CANCELLED"], True),
        (["CANCELLED"], ["RUNNING", "CANCELLED"], True),
        (["JOB_STATE_CANCELLED"], ["RUNNING", "DONE"], False),
        (["JOB_STATE_DRAINED"], ["RUNNING", "DONE"], False),
        (["JOB_STATE_DONE"], ["RUNNING", "DRAINED"], False),
        (["JOB_STATE_FAILED"], ["RUNNING", "FAILED"], True),
        (["JOB_STATE_RUNNING"], ["QUEUED", "RUNNING"], True),
        (["JOB_STATE_RUNNING"], ["DONE"], True),
        (["JOB_STATE_RUNNING"], ["FAILED"], False),
        (["JOB_STATE_DRAINING"], ["RUNNING", "DRAINING"], True),
    ],
)
async def test_expected_states_decide_which_state_is_a_success(
    fake: FakeDataflow, runs: Runs, expected: list[str], steps: list[str], ends_well: bool
) -> None:
    fake.script("load", *map(Step, steps))
    outcome = await launch(runs, expected_states=expected).outcome()
    assert isinstance(outcome, Success if ends_well else Failure)
    if isinstance(outcome, Failure) and steps[-1] in ("DONE", "DRAINED"):
        assert f"JOB_STATE_{steps[-1]}, but expected_states= has only {expected[0]}" in outcome.reason


async def test_streaming_job_whose_type_is_returned_late_succeeds_when_it_runs(
    fake: FakeDataflow, runs: Runs
) -> None:
    fake.script("load", streaming=True, hides_type=True)
    run = launch(runs)
    await eventually(lambda: fake.jobs("load"), "the job")
    await watched(fake, run)
    assert not run.task.done()
    fake.move("load", "RUNNING")
    assert isinstance(await run.outcome(), Success)


async def test_wait_for_drained_continues_while_the_job_runs(fake: FakeDataflow, runs: Runs) -> None:
    fake.script("load", RUNNING, streaming=True)
    run = launch(runs, expected_state="drained")
    await eventually(lambda: fake.jobs("load"), "the job")
    await watched(fake, run)
    assert not run.task.done()
    fake.move("load", "DRAINED")
    assert isinstance(await run.outcome(), Success)


async def test_unknown_state_is_logged_as_a_warning_and_the_wait_continues(
    fake: FakeDataflow, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    fake.script("load", Step(99))
    run = launch(runs)
    await eventually(lambda: fake.jobs("load"), "the job")
    await watched(fake, run)
    fake.move("load", "DONE")
    assert isinstance(await run.outcome(), Success)
    assert caplog.text.count("does not know the job state JOB_STATE_99") == 1


async def test_updates_are_followed_to_the_last_replacement(
    fake: FakeDataflow, runs: Runs, airflow_comms: AirflowComms
) -> None:
    fake.script("load", RUNNING)
    run = launch(runs)
    await eventually(lambda: fake.jobs("load"), "the job")
    await watched(fake, run)
    fake.replace("load")
    last = fake.replace("load")
    await watched(fake, run)
    fake.move(last, "DONE")
    outcome = await run.outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["id"] == last
    assert airflow_comms.xcoms["job_id"] == last
    assert last in airflow_comms.xcoms["_link_DataflowJobLink"]


async def test_reason_of_a_failed_job_is_its_error_messages(fake: FakeDataflow, runs: Runs) -> None:
    fake.script(
        "load",
        Step("RUNNING", message="worker started", importance="BASIC"),
        Step("", message="disk is slow", importance="WARNING"),
        Step("", message="no such bucket"),
        Step("FAILED", message="Workflow failed"),
    )
    outcome = await launch(runs).outcome()
    assert outcome == Failure(f"the job {fake.job('load').id} failed: no such bucket\nWorkflow failed")


@pytest.mark.parametrize("importance", ["BASIC", "WARNING", "ERROR"])
async def test_reason_of_a_cancelled_job_contains_its_messages(
    fake: FakeDataflow, runs: Runs, importance: str
) -> None:
    steps = [RUNNING, Step("CANCELLED", message="cancelled by an operator", importance=importance)]
    fake.script("load", *steps)
    outcome = await launch(runs).outcome()
    assert outcome == Failure(f"the job {fake.job('load').id} was cancelled: cancelled by an operator")


async def test_failed_launcher_is_linked_to_its_log_and_to_the_console(
    fake: FakeDataflow, runs: Runs
) -> None:
    text = "Error occurred in the launcher container: Template launch failed. See console logs."
    fake.script("load", Step("FAILED", message=text))
    outcome = await launch(runs).outcome()
    job = fake.job("load").id
    assert isinstance(outcome, Failure)
    log, console = outcome.reason.splitlines()[1:]
    assert log.startswith("The log of the launcher: https://console.cloud.google.com/logs/query;query=")
    query = unquote(log.partition("query=")[2].partition("?")[0])
    assert query.splitlines() == [
        'resource.type="dataflow_step"',
        f'resource.labels.job_id="{job}"',
        'logName="projects/my-project/logs/dataflow.googleapis.com%2Flauncher"',
    ]
    assert console == (
        f"The job: https://console.cloud.google.com/dataflow/jobs/europe-west1/{job}?project=my-project"
    )


async def test_failed_job_fails_the_task_without_permission_to_read_its_messages(
    fake: FakeDataflow, runs: Runs
) -> None:
    fake.trouble.fail("ListJobMessages", "PERMISSION_DENIED", times=None)
    fake.script("load", RUNNING, Step("FAILED", message="no such bucket"))
    outcome = await launch(runs).outcome()
    assert isinstance(outcome, Failure)
    assert "dataflow.messages.list" in outcome.reason


async def test_transient_errors_do_not_fail_a_wait(fake: FakeDataflow, runs: Runs) -> None:
    fake.script("load", RUNNING)
    run = launch(runs)
    await eventually(lambda: fake.jobs("load"), "the job")
    await watched(fake, run)
    await fake.disconnect()
    await fake.connect()
    for method in ("ListJobs", "GetJob"):
        fake.trouble.fail(method, "UNAVAILABLE", times=2)
    fake.move("load", "DONE")
    assert isinstance(await run.outcome(), Success)


async def test_messages_are_logged_once_also_after_a_restart(
    fake: FakeDataflow, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    fake.script("load", RUNNING)
    first = launch(runs)
    await eventually(lambda: fake.jobs("load"), "the job")
    fake.say("load", "quota is low", "WARNING")
    fake.say("load", "worker started", "BASIC")

    async def noted() -> bool:
        progress = (await first.wait()).progress
        return bool(progress and progress["read"])

    await eventually(lambda: "quota is low" in caplog.text, "the warning")
    while not await noted():
        await watched(fake, first)
    await first.kill_process()
    again = launch(runs, attempt=first.attempt)
    fake.say("load", "disk is full", "ERROR")
    await eventually(lambda: "disk is full" in caplog.text, "the error")
    fake.move("load", "DONE")
    assert isinstance(await again.outcome(), Success)
    told = [record for record in caplog.records if record.getMessage().startswith("Dataflow, ")]
    assert [(record.levelno, record.getMessage().partition(": ")[2]) for record in told] == [
        (logging.WARNING, "quota is low"),
        (logging.ERROR, "disk is full"),
    ]


@pytest.mark.parametrize("level, seen", [("BASIC", True), ("ERROR", False), (None, False)])
async def test_only_messages_of_the_chosen_importance_are_logged(
    fake: FakeDataflow, runs: Runs, caplog: pytest.LogCaptureFixture, level: str | None, seen: bool
) -> None:
    fake.script("load", Step("RUNNING", message="worker started", importance="BASIC"), Step("DONE"))
    assert isinstance(await launch(runs, log_messages=level).outcome(), Success)
    assert ("worker started" in caplog.text) is seen


async def test_30000_messages_are_capped_with_a_count(
    fake: FakeDataflow, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    fake.page_limit = 10_000
    fake.script("load", RUNNING)
    run = launch(runs)
    await eventually(lambda: fake.jobs("load"), "the job")
    job = fake.job("load")
    for number in range(30_000):
        job.say(f"row {number} is bad", "WARNING", at=job.created_at + number / 10_000)
    await eventually(lambda: "row 29999 is bad" in caplog.text, "the newest message")
    fake.move("load", "DONE")
    assert isinstance(await run.outcome(), Success)
    logged = [record for record in caplog.records if record.getMessage().startswith("Dataflow, ")]
    assert len(logged) == 200
    assert "29800 messages of the job" in caplog.text


async def test_messages_of_a_job_are_capped_in_all_also_after_a_restart(
    fake: FakeDataflow, runs: Runs, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_MAX_LOGGED", 3)
    fake.script("load", RUNNING)
    first = launch(runs)
    await eventually(lambda: fake.jobs("load"), "the job")
    fake.say("load", "one", "WARNING")
    fake.say("load", "two", "WARNING")

    async def count_is_stored() -> bool:
        return ((await first.wait()).progress or {}).get("logged") == 2

    while not await count_is_stored():
        await watched(fake, first)
    await first.kill_process()
    for text in ("three", "four", "five"):
        fake.say("load", text, "WARNING")
    fake.move("load", "DONE")
    assert isinstance(await launch(runs, attempt=first.attempt).outcome(), Success)
    logged = [record for record in caplog.records if record.getMessage().startswith("Dataflow, ")]
    assert [record.getMessage().rpartition(" ")[2] for record in logged] == ["one", "two", "five"]
    assert "2 messages of the job" in caplog.text


async def test_job_that_cannot_be_read_is_in_the_log_of_its_own_task_only(
    fake: FakeDataflow, runs: Runs, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_PROBLEM_AFTER", 0.2)
    monkeypatch.setattr(DataflowTrigger, "_problem_due", 0.2)
    fake.script("load", Step("STOPPED"))  # no list of active jobs contains it
    run = launch(runs, timeout=3.0, when_killed="leave")
    await eventually(lambda: "JOB_STATE_STOPPED" in caplog.text, "the job to be read")
    fake.trouble.fail("GetJob", "PERMISSION_DENIED", "a policy changed", times=None)
    await eventually(lambda: "retrying until the deadline" in caplog.text, "the cause in the log")
    assert not [outage for outage in outages.active() if outage.source.startswith("Dataflow")]
    outcome = await run.outcome()
    assert isinstance(outcome, Failure)
    assert "within the timeout of 3 s" in outcome.reason
    assert "a policy changed" in outcome.reason
    assert fake.job("load").stops_asked == []


async def test_sensor_waits_for_a_job_and_never_stops_it(fake: FakeDataflow, runs: Runs) -> None:
    job = fake.create("anybody-s-job", "my-project", "europe-west1", {}, {})
    job.move("RUNNING")
    run = runs.start(DataflowJobTrigger(**PLACE, job_id=job.id, timeout=1.0))
    outcome = await run.outcome()
    assert isinstance(outcome, Failure)
    assert job.id in outcome.reason
    assert (await run.wait()).cancel is None
    job.move("DONE")
    ended = await runs.start(DataflowJobTrigger(**PLACE, job_id=job.id)).outcome()
    assert isinstance(ended, Success)
    assert ended.value["id"] == job.id
    assert job.stops_asked == []


@pytest.mark.usefixtures("final_soon")
async def test_sensor_for_a_job_that_does_not_exist_fails_and_names_it(
    fake: FakeDataflow, runs: Runs
) -> None:
    outcome = await runs.start(DataflowJobTrigger(**PLACE, job_id="no-such-job")).outcome()
    assert isinstance(outcome, Failure)
    assert "no-such-job" in outcome.reason
    assert not outcome.retryable


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "NOT_FOUND"])
async def test_sensor_survives_a_first_read_that_is_refused(
    fake: FakeDataflow, runs: Runs, code: str
) -> None:
    job = fake.create("another", "my-project", "europe-west1", {}, {})
    job.move("DONE")
    fake.trouble.fail("GetJob", code, times=2)
    assert isinstance(await runs.start(DataflowJobTrigger(**PLACE, job_id=job.id)).outcome(), Success)


@pytest.mark.usefixtures("final_soon")
async def test_sensor_whose_first_reads_are_refused_for_minutes_fails_without_a_retry(
    fake: FakeDataflow, runs: Runs
) -> None:
    job = fake.create("another", "my-project", "europe-west1", {}, {})
    job.move("DONE")
    fake.trouble.fail("GetJob", "PERMISSION_DENIED", times=None)
    outcome = await runs.start(DataflowJobTrigger(**PLACE, job_id=job.id)).outcome()
    assert isinstance(outcome, Failure)
    assert "dataflow.jobs.get" in outcome.reason
    assert not outcome.retryable
