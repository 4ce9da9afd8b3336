"""Each attempt launches one job, even if processes are killed, replies are lost or triggers run twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from unit.triggers.dataflow.support import BODY, PLACE, launch
from unit.triggers.support import AirflowComms, Runs, eventually, new_attempt

from deferrable_ops.inbox import WaitState
from deferrable_ops.inbox.waits.cancellations import Cancellations
from deferrable_ops.outcome import Failure, Success
from deferrable_ops.testing.dataflow import FakeDataflow, Step
from deferrable_ops.triggers.dataflow.launch import LaunchTimings
from deferrable_ops.triggers.dataflow.request import WAIT_LABEL, job_name
from deferrable_ops.triggers.dataflow.triggers import DataflowLaunchTrigger
from deferrable_ops.triggers.lifecycle.cancellation import cancel_due_work

RUNNING = Step("RUNNING")


async def test_flex_template_is_launched_and_followed_to_its_end(
    fake: FakeDataflow, runs: Runs, airflow_comms: AirflowComms
) -> None:
    run = launch(runs, labels={"team": "data"})
    outcome = await run.outcome()
    job = fake.job("load-orders")
    assert job.name == job_name("load_orders", run.attempt.wait_id)
    assert job.labels == {
        "airflow-dag": "dag",
        "airflow-run": run.attempt.run_id,
        "airflow-task": "load_orders",
        "team": "data",
        WAIT_LABEL: run.attempt.wait_id,
    }
    assert isinstance(outcome, Success)
    assert (outcome.value["id"], outcome.value["currentState"]) == (job.id, "JOB_STATE_DONE")
    assert airflow_comms.xcoms["job_id"] == job.id
    assert airflow_comms.xcoms["_link_DataflowJobLink"] == (
        f"https://console.cloud.google.com/dataflow/jobs/europe-west1/{job.id}?project=my-project"
    )
    assert fake.trouble.calls["LaunchFlexTemplate"] == 1


async def test_job_without_a_project_runs_in_the_project_of_the_credentials(
    fake: FakeDataflow, runs: Runs, airflow_comms: AirflowComms, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = '{"extra": {"project": "of-the-connection"}}'
    monkeypatch.setenv("AIRFLOW_CONN_MY_GCP", extra)
    outcome = await launch(runs, project_id=None, gcp_conn_id="my_gcp").outcome()
    assert isinstance(outcome, Success)
    assert fake.job("load-orders").request["projectId"] == "of-the-connection"
    assert airflow_comms.xcoms["_link_DataflowJobLink"].endswith("?project=of-the-connection")


async def test_classic_template_is_launched(fake: FakeDataflow, runs: Runs) -> None:
    body = {"gcsPath": "gs://bucket/classic", "environment": {"maxWorkers": 2}}
    assert isinstance(await launch(runs, kind="classic", body=body).outcome(), Success)
    assert fake.trouble.calls["LaunchTemplate"] == 1
    assert fake.job("load-orders").request["gcsPath"] == "gs://bucket/classic"


async def test_result_is_the_jobs_id_and_the_job_has_its_own_xcom(
    fake: FakeDataflow, runs: Runs, airflow_comms: AirflowComms
) -> None:
    outcome = await launch(runs, result="id").outcome()
    job = fake.job("load-orders")
    assert outcome == Success(job.id)
    described = airflow_comms.xcoms["job"]
    assert (described["id"], described["currentState"]) == (job.id, "JOB_STATE_DONE")
    assert airflow_comms.xcoms["job_id"] == job.id


async def test_result_has_the_metrics_of_the_job(fake: FakeDataflow, runs: Runs) -> None:
    fake.script("load", RUNNING)
    run = launch(runs, result="metrics")
    await eventually(lambda: fake.jobs("load"), "the job")
    fake.job("load").metrics = {"rows": 42.0}
    fake.move("load", "DONE")
    outcome = await run.outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["currentState"] == "JOB_STATE_DONE"
    assert outcome.value["metrics"] == [{"name": {"origin": "user", "name": "rows"}, "scalar": 42.0}]


async def test_metrics_that_may_not_be_read_do_not_fail_the_task(
    fake: FakeDataflow, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    fake.trouble.fail("GetJobMetrics", "PERMISSION_DENIED", times=None)
    outcome = await launch(runs, result="metrics").outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["metrics"] is None
    assert "dataflow.metrics.get" in caplog.text


async def test_task_that_does_not_wait_ends_when_the_job_is_accepted(fake: FakeDataflow, runs: Runs) -> None:
    fake.script("load", streaming=True)
    outcome = await launch(runs, wait_until_finished=False).outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["currentState"] == "JOB_STATE_QUEUED"
    assert fake.job("load").stops_asked == []


@pytest.mark.parametrize("second_launch", ["refuse", "return"])
async def test_job_of_a_run_that_was_killed_before_the_reply_is_adopted(
    fake: FakeDataflow, runs: Runs, second_launch: Any
) -> None:
    fake.second_launch = second_launch
    fake.trouble.delay("LaunchFlexTemplate", after=5)
    killed = launch(runs)
    await eventually(lambda: fake.jobs("load"), "the job")
    await killed.kill_process()
    fake.trouble.mend()
    assert isinstance(await launch(runs, attempt=killed.attempt).outcome(), Success)
    assert len(fake.jobs()) == 1


async def test_job_that_ended_between_two_runs_is_adopted(fake: FakeDataflow, runs: Runs) -> None:
    fake.script("load", Step("RUNNING"), Step("FAILED", message="no such bucket"))
    fake.trouble.lose_replies("LaunchFlexTemplate")
    killed = launch(runs)
    await eventually(lambda: fake.jobs("load"), "the job")
    await killed.kill_process()
    outcome = await launch(runs, attempt=killed.attempt).outcome()
    assert outcome == Failure(f"the job {fake.job('load').id} failed: no such bucket")
    assert len(fake.jobs()) == 1


@pytest.mark.parametrize("second_launch", ["refuse", "return"])
async def test_two_triggers_of_one_wait_launch_one_job(
    fake: FakeDataflow, runs: Runs, second_launch: Any
) -> None:
    fake.second_launch = second_launch
    attempt = new_attempt()
    both = [launch(runs, attempt=attempt) for _ in range(2)]
    outcomes = [await run.outcome() for run in both]
    assert len(fake.jobs()) == 1
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    "code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN", "ALREADY_EXISTS"]
)
async def test_lost_reply_does_not_launch_a_second_job(fake: FakeDataflow, runs: Runs, code: str) -> None:
    fake.trouble.lose_replies("LaunchFlexTemplate", code=code)
    assert isinstance(await launch(runs).outcome(), Success)
    assert len(fake.jobs()) == 1
    assert fake.trouble.calls["LaunchFlexTemplate"] == 1


async def test_job_that_is_missing_from_lists_at_first_is_found(fake: FakeDataflow, runs: Runs) -> None:
    fake.script("load", RUNNING)
    fake.list_lag = 0.5
    fake.trouble.lose_replies("LaunchFlexTemplate", code="UNAVAILABLE")
    run = launch(runs, expected_state="running")
    assert isinstance(await run.outcome(), Success)
    assert len(fake.jobs()) == 1
    assert fake.trouble.calls["LaunchFlexTemplate"] > 1  # ALREADY_EXISTS, until the list shows it


async def test_launch_without_quota_is_retried(fake: FakeDataflow, runs: Runs) -> None:
    fake.trouble.fail("LaunchFlexTemplate", "RESOURCE_EXHAUSTED", times=3)
    assert isinstance(await launch(runs).outcome(), Success)
    assert len(fake.jobs()) == 1


async def test_launch_fails_after_launch_timeout(fake: FakeDataflow, runs: Runs) -> None:
    fake.trouble.fail("LaunchFlexTemplate", "RESOURCE_EXHAUSTED", "quota exceeded", times=None)
    outcome = await launch(runs, launch_timeout=0.3).outcome()
    assert isinstance(outcome, Failure)
    assert "launch_timeout (0.3 s)" in outcome.reason
    assert "quota exceeded" in outcome.reason


async def test_refused_launch_names_the_permission_and_is_not_retried(fake: FakeDataflow, runs: Runs) -> None:
    fake.trouble.fail("LaunchFlexTemplate", "PERMISSION_DENIED", times=None)
    outcome = await launch(runs).outcome()
    assert isinstance(outcome, Failure)
    assert "dataflow.jobs.create" in outcome.reason
    assert fake.trouble.calls["LaunchFlexTemplate"] == 1


async def test_typo_in_the_body_fails_the_task_without_a_retry(fake: FakeDataflow, runs: Runs) -> None:
    outcome = await launch(runs, body={**BODY, "enviroment": {"maxWorkers": "2"}}).outcome()
    assert isinstance(outcome, Failure)
    assert not outcome.retryable
    assert "enviroment" in outcome.reason
    assert fake.jobs() == []


@pytest.mark.parametrize("labels", [{}, {WAIT_LABEL: "another-wait"}])
async def test_job_with_the_name_but_without_the_label_fails_the_task_and_keeps_running(
    fake: FakeDataflow, runs: Runs, labels: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DataflowLaunchTrigger, "launch_timings", LaunchTimings(labels_within=0.3))
    attempt = new_attempt()
    foreign = fake.create(job_name("load_orders", attempt.wait_id), "my-project", "europe-west1", labels, {})
    foreign.move("RUNNING")
    run = launch(runs, attempt=attempt)
    outcome = await run.outcome()
    assert isinstance(outcome, Failure)
    assert foreign.id in outcome.reason
    await cancel_due_work(runs.inbox)
    assert foreign.stops_asked == []
    assert fake.trouble.calls["LaunchFlexTemplate"] == 0


async def test_running_job_returned_without_labels_is_read_again(fake: FakeDataflow, runs: Runs) -> None:
    attempt = new_attempt()
    name = job_name("load_orders", attempt.wait_id)
    ours = fake.create(name, "my-project", "europe-west1", {}, {})
    ours.move("RUNNING")
    run = launch(runs, attempt=attempt)
    await eventually(lambda: fake.trouble.calls["GetJob"] > 1, "a second look")
    ours.labels[WAIT_LABEL] = attempt.wait_id
    assert not run.task.done()
    ours.move("DONE")
    assert isinstance(await run.outcome(), Success)
    assert fake.trouble.calls["LaunchFlexTemplate"] == 0


async def test_job_that_does_not_run_yet_is_adopted_by_its_name_although_its_labels_are_late(
    fake: FakeDataflow, runs: Runs
) -> None:
    fake.script("load", label_lag=3600)
    fake.trouble.lose_replies("LaunchFlexTemplate", code="UNAVAILABLE")
    run = launch(runs)
    job = await eventually(lambda: fake.jobs("load"), "the job")
    await eventually(lambda: fake.trouble.calls["ListJobs"] > 3, "the job to be watched")
    fake.move("load", "DONE")
    outcome = await run.outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["id"] == job[0].id
    assert [job.stops_asked for job in fake.jobs()] == [[]]


async def test_reason_of_a_launcher_that_failed_before_the_job_had_labels_is_the_jobs_own(
    fake: FakeDataflow, runs: Runs
) -> None:
    fake.script("load", Step("FAILED", message="image not found"), label_lag=3600)
    fake.trouble.lose_replies("LaunchFlexTemplate", code="UNAVAILABLE")
    assert await launch(runs).outcome() == Failure(f"the job {fake.job('load').id} failed: image not found")


async def test_job_that_is_found_late_after_its_launch_neither_fails_the_task_nor_is_stopped(
    fake: FakeDataflow, runs: Runs
) -> None:
    fake.script("load", RUNNING)
    fake.list_lag = fake.get_lag = 3600
    run = launch(runs, expected_state="running")
    await eventually(lambda: fake.trouble.calls["GetJob"] > 3, "reads that do not find the job")
    fake.list_lag = fake.get_lag = 0
    assert isinstance(await run.outcome(), Success)
    assert len(fake.jobs()) == 1
    assert fake.job("load").stops_asked == []


@pytest.mark.parametrize("code", ["INTERNAL", "UNKNOWN", "ABORTED"])
async def test_launch_with_an_error_of_dataflow_itself_is_bounded(
    fake: FakeDataflow, runs: Runs, code: str
) -> None:
    fake.trouble.fail("LaunchFlexTemplate", code, "bad template", times=None)
    outcome = await launch(runs).outcome()
    assert isinstance(outcome, Failure)
    assert "launch_timeout (0.3 s)" in outcome.reason
    assert "bad template" in outcome.reason


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
async def test_launch_during_an_outage_is_retried_until_the_deadline(
    fake: FakeDataflow, runs: Runs, code: str
) -> None:
    fake.trouble.fail("LaunchFlexTemplate", code, times=None)
    run = launch(runs)
    await eventually(lambda: fake.trouble.calls["LaunchFlexTemplate"] > 6, "more launches than in 0.3 s")
    assert not run.task.done()
    fake.trouble.mend()
    assert isinstance(await run.outcome(), Success)


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "UNAUTHENTICATED"])
async def test_job_of_a_lost_launch_is_not_cancelled_because_the_repeated_launch_is_refused(
    fake: FakeDataflow, runs: Runs, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DataflowLaunchTrigger, "launch_timings", LaunchTimings(first_pause=0.05))
    fake.script("load", RUNNING, list_lag=0.5)
    fake.trouble.lose_replies("LaunchFlexTemplate", code="UNAVAILABLE")
    run = launch(runs, expected_state="running")
    await eventually(lambda: fake.jobs("load"), "the job")
    fake.trouble.fail("LaunchFlexTemplate", code, times=None)
    assert isinstance(await run.outcome(), Success)
    assert [job.stops_asked for job in fake.jobs()] == [[]]


async def test_retry_stops_the_superseded_job_before_it_launches_its_own(
    fake: FakeDataflow, runs: Runs
) -> None:
    fake.script("load", RUNNING, stop_seconds=60)
    first = launch(runs)
    await eventually(lambda: fake.trouble.calls["ListJobs"] > 1, "the first job to be watched")
    asked_at_launch: list[list[str]] = []
    create = fake.create

    def watched_create(*arguments: Any) -> Any:
        asked_at_launch.append(list(fake.job("load").stops_asked))
        return create(*arguments)

    fake.create = watched_create  # type: ignore[method-assign]
    fake.script("load", RUNNING, Step("DONE"))
    second = launch(runs, attempt=new_attempt(2, of=first.attempt))
    assert isinstance(await second.outcome(), Success)
    assert asked_at_launch == [["cancel"]]
    assert [job.stops_asked for job in fake.jobs()] == [["cancel"], []]
    assert (await first.wait()).state is WaitState.SUPERSEDED


async def test_retry_waits_until_the_superseded_job_can_be_stopped(fake: FakeDataflow, runs: Runs) -> None:
    runs.inbox.cancellations = Cancellations(runs.inbox.database, runs.inbox.owner, lease=0.05)
    fake.script("load", RUNNING)
    first = launch(runs)
    await eventually(lambda: fake.jobs("load"), "the first job")
    await eventually(lambda: fake.trouble.calls["ListJobs"] > 1, "the first job to be watched")
    fake.trouble.fail("UpdateJob", "PERMISSION_DENIED", times=2)
    second = launch(runs, attempt=new_attempt(2, of=first.attempt), expected_state="running")
    assert isinstance(await second.outcome(), Success)
    assert fake.trouble.calls["UpdateJob"] == 3
    assert [job.stops_asked for job in fake.jobs()] == [["cancel"], []]


async def test_superseded_job_of_an_attempt_killed_before_the_reply_is_found_and_stopped(
    fake: FakeDataflow, runs: Runs
) -> None:
    fake.script("load", RUNNING)
    fake.trouble.delay("LaunchFlexTemplate", after=30)
    first = launch(runs)
    await eventually(lambda: fake.jobs("load"), "the first job")
    await first.kill_process()
    fake.trouble.mend()
    second = launch(runs, attempt=new_attempt(2, of=first.attempt), expected_state="running")
    assert isinstance(await second.outcome(), Success)
    assert [job.stops_asked for job in fake.jobs()] == [["cancel"], []]


@pytest.mark.parametrize(
    "on_kill, streaming, asked",
    [
        ("cancel", True, ["cancel"]),
        ("drain", True, ["drain"]),
        ("drain", False, ["cancel"]),
        ("leave", True, []),
    ],
)
async def test_kill_stops_the_job_as_on_kill_requires(
    fake: FakeDataflow, runs: Runs, on_kill: str, streaming: bool, asked: list[str]
) -> None:
    fake.script("load", RUNNING, streaming=streaming)
    run = launch(runs, when_killed=on_kill, expected_state="done")
    await eventually(lambda: fake.trouble.calls["ListJobs"] > 1, "the job to be watched")
    await run.kill_process()
    assert fake.job("load").stops_asked == []
    await runs.inbox.waits.kill([run.attempt.wait_id])
    await cancel_due_work(runs.inbox)
    assert fake.job("load").stops_asked == asked


async def test_kill_stops_the_job_that_replaced_the_first_one(fake: FakeDataflow, runs: Runs) -> None:
    fake.script("load", RUNNING)
    run = launch(runs)
    await eventually(lambda: fake.trouble.calls["ListJobs"] > 1, "the job to be watched")
    await run.kill_process()
    replacement = fake.replace("load")
    await runs.inbox.waits.kill([run.attempt.wait_id])
    await cancel_due_work(runs.inbox)
    assert fake.job(replacement).stops_asked == ["cancel"]


@pytest.mark.usefixtures("final_soon")
async def test_attempt_without_a_launch_neither_searches_for_a_job_nor_delays_a_retry(
    fake: FakeDataflow, runs: Runs
) -> None:
    fake.trouble.fail("ListJobs", "PERMISSION_DENIED", times=None)
    first = launch(runs)
    assert isinstance(await first.outcome(), Failure)
    retry = await launch(runs, attempt=new_attempt(2, of=first.attempt)).outcome()
    assert isinstance(retry, Failure)
    assert "dataflow.jobs.list" in retry.reason
    assert (await first.wait()).cancel == "done"


async def test_deleted_job_does_not_delay_a_retry_for_more_than_some_minutes(
    fake: FakeDataflow, runs: Runs
) -> None:
    runs.inbox.cancellations = Cancellations(runs.inbox.database, runs.inbox.owner, lease=0.05)
    fake.script("load", RUNNING)
    first = launch(runs)
    await eventually(lambda: fake.trouble.calls["ListJobs"] > 1, "the first job to be watched")
    await first.kill_process()
    fake.trouble.fail("GetJob", "NOT_FOUND", times=None)
    second = launch(runs, attempt=new_attempt(2, of=first.attempt), expected_state="running")
    await eventually(lambda: len(fake.jobs()) == 2, "the second job")
    fake.trouble.mend()
    assert isinstance(await second.outcome(), Success)


async def test_running_job_is_stopped_although_dataflow_did_not_find_it_at_first(
    fake: FakeDataflow, runs: Runs
) -> None:
    fake.script("load", RUNNING)
    run = launch(runs)
    await eventually(lambda: fake.trouble.calls["ListJobs"] > 1, "the job to be watched")
    await run.kill_process()
    fake.trouble.fail("GetJob", "NOT_FOUND")
    await runs.inbox.waits.kill([run.attempt.wait_id])
    await cancel_due_work(runs.inbox)
    assert fake.job("load").stops_asked == ["cancel"]


async def test_kill_before_any_launch_makes_no_call(fake: FakeDataflow, runs: Runs) -> None:
    trigger = DataflowLaunchTrigger(**PLACE, body=BODY)
    attempt = new_attempt()
    trigger.attempt = {
        "ti_id": attempt.ti_id,
        "try_number": 1,
        "dag_id": "dag",
        "run_id": "run",
        "task_id": "t",
    }
    wait = await runs.inbox.waits.register(trigger.new_wait(trigger.identify()))
    await runs.inbox.waits.kill([wait.id])
    await cancel_due_work(runs.inbox)
    assert (await runs.inbox.waits.get(wait.id)).cancel == "done"
    assert not fake.trouble.calls


async def test_failed_job_is_not_stopped(fake: FakeDataflow, runs: Runs) -> None:
    fake.script("load", RUNNING, Step("FAILED", message="boom"))
    run = launch(runs)
    assert isinstance(await run.outcome(), Failure)
    assert (await run.wait()).cancel is None


async def test_restart_of_a_watching_trigger_neither_launches_nor_sets_xcoms_again(
    fake: FakeDataflow, runs: Runs, airflow_comms: AirflowComms
) -> None:
    fake.script("load", RUNNING)
    first = launch(runs)
    await eventually(lambda: fake.trouble.calls["ListJobs"] > 1, "the job to be watched")
    await first.kill_process()
    sent = len(airflow_comms.sent)
    calls = fake.trouble.calls["LaunchFlexTemplate"]
    again = launch(runs, attempt=first.attempt)
    fake.move("load", "DONE")
    assert isinstance(await again.outcome(), Success)
    assert fake.trouble.calls["LaunchFlexTemplate"] == calls
    assert len(airflow_comms.sent) == sent


async def test_many_waits_launch_one_job_each(fake: FakeDataflow, runs: Runs) -> None:
    fake.trouble.lose_replies("LaunchFlexTemplate", times=5, code="UNAVAILABLE")
    started = [launch(runs) for _ in range(20)]
    outcomes = await asyncio.gather(*(run.outcome() for run in started))
    assert all(isinstance(outcome, Success) for outcome in outcomes)
    assert len({job.name for job in fake.jobs()}) == len(fake.jobs()) == 20
