"""A Dataflow task on a real Airflow: how it ends, what its XComs are, and that no worker process ran."""

from __future__ import annotations

import pytest

from real_airflow import DONE, RUNNING, OutsideDataflow, RealAirflow, wait_until

# Nothing of these depends on the inbox's database.
once = pytest.mark.parametrize("started_airflow", ["postgres"], indirect=True)

CONSOLE = "https://console.cloud.google.com/dataflow/jobs/europe-west1/{}?project=tests"


@pytest.mark.both_databases
def test_flex_and_classic_template_are_launched_and_waited_for_without_a_worker(
    airflow: RealAirflow, dataflow: OutsideDataflow
) -> None:
    prefixes = {kind: dataflow.new_prefix() for kind in ("flex", "classic")}
    runs = {kind: airflow.trigger(f"dataflow_{kind}", {"job": prefixes[kind]}) for kind in prefixes}
    jobs = {kind: dataflow.wait_for_jobs(prefix=prefix)[0] for kind, prefix in prefixes.items()}
    date = runs["flex"].run_id.split("__")[1][:10]
    parameters = jobs["flex"].request["launchParameter"]
    assert parameters["parameters"] == {"date": date, "numbers": "7"}
    assert parameters["environment"]["maxWorkers"] == 4
    assert jobs["flex"].labels.items() >= {"from": "body", "team": "orders"}.items()
    assert jobs["classic"].request["gcsPath"] == "gs://tests/classic"
    assert jobs["classic"].request["launchParameters"]["environment"]["maxWorkers"] == 2

    for kind, job in jobs.items():
        task = runs[kind].task("job")
        wait_until(lambda task=task: "job_id" in task.xcom_keys(), f"the job's id while {task} waits")
        assert task.xcom("job_id") == job.id
        assert task.links() == {"Dataflow job": CONSOLE.format(job.id)}
        dataflow.tell("move", job.id, "DONE")

    for kind, job in jobs.items():
        runs[kind].wait_for("success")
        task = runs[kind].task("job")
        described = task.xcom() if kind == "flex" else task.xcom("job")
        assert kind == "flex" or task.xcom() == job.id
        assert described["id"] == job.id
        assert described["name"] == job.name
        assert described["currentState"] == "JOB_STATE_DONE"
        assert described["labels"] == job.labels
        assert runs[kind].worker_processes() == 0
        assert len(dataflow.jobs(prefixes[kind])) == 1


def test_messages_of_the_job_appear_in_the_log_while_it_runs_each_once_and_those_asked_for_only(
    airflow: RealAirflow, dataflow: OutsideDataflow
) -> None:
    task = airflow.trigger("dataflow_flex", {"job": dataflow.prefix}).task("job")
    [job] = dataflow.wait_for_jobs()
    dataflow.tell("say", job.id, "worker pool started", "BASIC")
    dataflow.tell("say", job.id, "a worker is slow", "WARNING")
    wait_until(lambda: "a worker is slow" in task.log(), "the warning in the task's log")
    dataflow.tell("say", job.id, "a bundle failed", "ERROR")
    dataflow.tell("move", job.id, "DONE")

    task.run.wait_for("success")
    log = task.log()
    assert log.count("a worker is slow") == log.count("a bundle failed") == 1
    assert "worker pool started" not in log
    assert f"The job {job.id} is in the state JOB_STATE_DONE" in log


@pytest.mark.both_databases
def test_failed_job_is_the_reason_and_the_retry_launches_exactly_one_other(
    airflow: RealAirflow, dataflow: OutsideDataflow
) -> None:
    run = airflow.trigger("dataflow_retries", {"job": dataflow.prefix})
    [first] = dataflow.wait_for_jobs()
    dataflow.script(dataflow.prefix, RUNNING, DONE)
    dataflow.tell("say", first.id, "no such bucket", "ERROR")
    dataflow.tell("move", first.id, "FAILED")

    run.wait_for("success")
    _, second = dataflow.jobs()
    task = run.task("job")
    assert task.xcom("job_id") == task.xcom()["id"] == second.id != first.id
    assert second.name != first.name
    assert f"the job {first.id} failed: no such bucket" in task.log(1)
    assert [job.stops_asked for job in dataflow.jobs()] == [[], []]
    assert run.worker_processes() == 0


@once
def test_streaming_job_is_waited_for_until_it_runs_and_its_output_names_it_to_the_task_that_drains_it(
    airflow: RealAirflow, dataflow: OutsideDataflow
) -> None:
    dataflow.script(dataflow.prefix, RUNNING, streaming=True, hides_type=True)
    run = airflow.trigger("dataflow_stream_then_drain", {"job": dataflow.prefix}).wait_for("success")

    [job] = dataflow.jobs()
    assert run.task("stream").xcom()["currentState"] == "JOB_STATE_RUNNING"
    assert run.task("stream").xcom("job_id") == job.id
    assert run.task("stream").worker_processes() == 0
    assert (job.state, job.stops_asked) == ("DRAINED", ["drain"])
    assert run.task("drain").xcom()["currentState"] == "JOB_STATE_DRAINED"
    assert run.task("drain").worker_processes() == 1


@once
def test_streaming_job_is_waited_for_until_it_is_drained(
    airflow: RealAirflow, dataflow: OutsideDataflow
) -> None:
    dataflow.script(dataflow.prefix, RUNNING, streaming=True)
    run = airflow.trigger("dataflow_drained", {"job": dataflow.prefix})
    [job] = dataflow.wait_for_jobs()
    wait_until(
        lambda: "in the state JOB_STATE_RUNNING" in run.task("job").log(), "the job to be seen running"
    )
    assert run.task("job").state == "deferred"
    dataflow.tell("move", job.id, "DRAINED")

    run.wait_for("success")
    assert run.task("job").xcom()["currentState"] == "JOB_STATE_DRAINED"
    assert run.worker_processes() == 0


@once
def test_updated_stream_keeps_its_name_and_the_earlier_task_waits_for_the_replacement(
    airflow: RealAirflow, dataflow: OutsideDataflow
) -> None:
    dataflow.script(dataflow.prefix, RUNNING, streaming=True)
    earlier = airflow.trigger("dataflow_updated", {"job": dataflow.prefix})
    [replaced] = dataflow.wait_for_jobs()
    later = airflow.trigger("dataflow_updated", {"job": dataflow.prefix})
    replaced, replacement = dataflow.wait_for_jobs(2)
    dataflow.tell("move", replacement.id, "DRAINED")

    for run in (earlier, later):
        run.wait_for("success")
        assert run.task("job").xcom()["id"] == replacement.id
        assert run.worker_processes() == 0
    assert (replaced.name, replacement.name) == (dataflow.prefix, dataflow.prefix)
    assert (replaced.state, replaced.stops_asked) == ("UPDATED", [])
    assert "update" not in replaced.request["launchParameter"]
    assert replacement.request["launchParameter"]["update"] is True
    assert replacement.request["launchParameter"]["transformNameMappings"] == {"Read": "ReadOrders"}
    assert len(dataflow.jobs()) == 2


def test_deadline_cancels_the_job_and_fails_the_task(airflow: RealAirflow, dataflow: OutsideDataflow) -> None:
    run = airflow.trigger("dataflow_timeout", {"job": dataflow.prefix})
    [job] = dataflow.wait_for_jobs()

    run.wait_for("failed")
    assert dataflow.wait_for_stop(job) == ["cancel"]
    assert f"the job {job.id} did not finish within the timeout of 12 s" in run.task("job").log()
    assert run.worker_processes() == 0


@once
def test_refused_launch_names_the_permission(airflow: RealAirflow, dataflow: OutsideDataflow) -> None:
    dataflow.tell("fail", "LaunchFlexTemplate", "PERMISSION_DENIED")
    run = airflow.trigger("dataflow_flex", {"job": dataflow.prefix}).wait_for("failed")

    assert "dataflow.jobs.create" in run.task("job").log()
    assert dataflow.jobs() == []
    assert run.worker_processes() == 0


def test_jobs_that_are_accepted_are_waited_for_by_a_sensor_or_stopped_by_their_prefix(
    airflow: RealAirflow, dataflow: OutsideDataflow
) -> None:
    other = dataflow.new_prefix()
    accepted = [airflow.trigger("dataflow_accepted", {"job": prefix}) for prefix in (dataflow.prefix, other)]
    [awaited], [stopped] = dataflow.wait_for_jobs(), dataflow.wait_for_jobs(prefix=other)
    sensor = airflow.trigger("dataflow_sensor", {"job_id": awaited.id})
    stop = airflow.trigger("dataflow_stop", {"job": other}).wait_for("success")
    wait_until(
        lambda: f"{awaited.id} is in the state" in sensor.task("wait").log(), "the sensor to watch the job"
    )
    dataflow.tell("move", awaited.id, "DONE")
    sensor.wait_for("success")

    for run, job in zip(accepted, (awaited, stopped), strict=True):
        run.wait_for("success")
        assert run.task("read").xcom() == job.name
        assert run.task("job").xcom("job_id") == job.id
        assert run.task("job").worker_processes() == 0
    assert dataflow.job(stopped.id).state == "CANCELLED"
    assert dataflow.job(awaited.id).stops_asked == []
    assert [job["id"] for job in stop.task("stop").xcom()] == [stopped.id]
    assert sensor.task("wait").xcom()["currentState"] == "JOB_STATE_DONE"
    assert sensor.task("wait").links() == {"Dataflow job": CONSOLE.format(awaited.id)}
    assert stop.worker_processes() == sensor.worker_processes() == 0
