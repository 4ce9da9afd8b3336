"""A Dataflow task that a user clears or marks, and a triggerer that restarts: which job is stopped, which is not."""

from __future__ import annotations

import pytest

from real_airflow import DONE, RUNNING, OutsideDataflow, RealAirflow, wait_until


@pytest.mark.both_databases
def test_cleared_task_has_its_job_cancelled_before_it_launches_another(
    airflow: RealAirflow, dataflow: OutsideDataflow
) -> None:
    run = airflow.trigger("dataflow_flex", {"job": dataflow.prefix})
    task = run.task("job").wait_for("deferred")
    [old] = dataflow.wait_for_jobs()
    wait_until(lambda: "job_id" in task.xcom_keys(), "the launch to be recorded")
    dataflow.script(dataflow.prefix, RUNNING, DONE)

    task.clear()

    _, new = dataflow.wait_for_jobs(2)
    assert dataflow.job(old.id).stops_asked == ["cancel"]
    run.wait_for("success")
    assert task.xcom()["id"] == task.xcom("job_id") == new.id
    assert len(dataflow.jobs()) == 2
    assert dataflow.job(new.id).stops_asked == []
    assert run.worker_processes() == 0


def test_task_that_a_user_ends_has_its_job_cancelled_drained_or_left(
    airflow: RealAirflow, dataflow: OutsideDataflow
) -> None:
    wanted = {"dataflow_flex": ["cancel"], "dataflow_drained": ["drain"], "dataflow_leave": []}
    prefixes = {dag_id: dataflow.new_prefix() for dag_id in wanted}
    dataflow.script(prefixes["dataflow_drained"], RUNNING, streaming=True)
    runs = {dag_id: airflow.trigger(dag_id, {"job": prefix}) for dag_id, prefix in prefixes.items()}
    jobs = {dag_id: dataflow.wait_for_jobs(prefix=prefix)[0] for dag_id, prefix in prefixes.items()}
    for dag_id in ("dataflow_leave", "dataflow_flex", "dataflow_drained"):
        task = runs[dag_id].task("job").wait_for("deferred")
        wait_until(
            lambda task=task: "in the state JOB_STATE_RUNNING" in task.log(), f"{task} to watch its job"
        )
        task.mark("failed")

    assert dataflow.wait_for_stop(jobs["dataflow_flex"]) == ["cancel"]
    assert dataflow.wait_for_stop(jobs["dataflow_drained"]) == ["drain"]
    for dag_id, run in runs.items():
        run.wait_for("failed")
        assert dataflow.job(jobs[dag_id].id).stops_asked == wanted[dag_id]
        assert len(dataflow.jobs(prefixes[dag_id])) == 1
        assert run.worker_processes() == 0


@pytest.mark.long
def test_restarted_triggerer_goes_on_with_the_job_and_one_that_was_ended_meanwhile_is_stopped(
    airflow: RealAirflow, dataflow: OutsideDataflow
) -> None:
    ended_prefix = dataflow.new_prefix()
    waiting, ended = (
        airflow.trigger("dataflow_flex", {"job": prefix}) for prefix in (dataflow.prefix, ended_prefix)
    )
    [job], [unneeded] = dataflow.wait_for_jobs(), dataflow.wait_for_jobs(prefix=ended_prefix)
    dataflow.tell("say", job.id, "a worker is slow", "WARNING")
    wait_until(lambda: "a worker is slow" in waiting.task("job").log(), "the warning in the task's log")
    wait_until(
        lambda: "in the state JOB_STATE_RUNNING" in ended.task("job").log(), "the other job to be watched"
    )

    airflow.triggerer.stop()
    assert dataflow.job(job.id).stops_asked == dataflow.job(unneeded.id).stops_asked == []
    ended.task("job").mark("failed")
    airflow.start_component(airflow.triggerer)
    dataflow.tell("move", job.id, "DONE")

    waiting.wait_for("success")
    assert waiting.task("job").log().count("a worker is slow") == 1
    assert dataflow.wait_for_stop(unneeded, timeout=90) == ["cancel"]
    assert len(dataflow.jobs()) == len(dataflow.jobs(ended_prefix)) == 1
    assert dataflow.job(job.id).stops_asked == []
    assert waiting.worker_processes() == 0
