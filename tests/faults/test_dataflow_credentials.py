"""A triggerer that restarts while credentials or reads fail: no task fails, and no Dataflow job is cancelled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from faults.support.google_thread import GoogleThread

from deferrable_ops.testing.dataflow import Step
from real_airflow import RealAirflow, Run, wait_until

COUNT = 5
AWAY = 0


@pytest.mark.long
@pytest.mark.parametrize("started_airflow", ["postgres"], indirect=True)
def test_five_jobs_outlive_every_failure_of_credentials_and_reads_at_a_restart(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    with GoogleThread(tmp_path).running() as servers:
        google, dataflow = servers.google, servers.dataflow
        dataflow.script("credentials", Step("RUNNING"))

        def restart(source: str, trouble: Callable[[], None]) -> None:
            airflow.triggerer.kill()
            trouble()
            airflow.start_component(airflow.triggerer, servers.environment(source))

        def wait_for_polls(what: str) -> None:
            polls = dataflow.trouble.calls["ListJobs"]
            wait_until(lambda: dataflow.trouble.calls["ListJobs"] > polls + 2, what, timeout=180)
            assert [run.task("job").state for run in runs] == ["deferred"] * COUNT
            assert [job.stops_asked for job in dataflow.jobs()] == [[]] * COUNT

        def wait_for_cause(cause: str) -> None:
            def has_cause(run: Run) -> bool:
                return any(
                    "unreachable" in line and cause in line for line in run.task("job").log().splitlines()
                )

            wait_until(lambda: all(map(has_cause, runs)), f"{cause} in the log of each task", timeout=180)

        restart("key", lambda: None)
        runs = [
            airflow.trigger("dataflow_impersonated", {"job": f"credentials-{number}"})
            for number in range(COUNT)
        ]
        wait_until(lambda: len(dataflow.jobs()) == COUNT, "five jobs", timeout=180)
        wait_for_polls("the jobs to be watched")

        restart("key", lambda: google.fail("iam", 502))
        wait_for_polls("the jobs to be watched after a 502 of IAM")

        restart("metadata", lambda: google.fail("metadata", AWAY, times=None))
        wait_for_cause("credentials")
        google.mend()
        wait_for_polls("the jobs to be watched after the metadata server was away")

        restart("key", lambda: dataflow.trouble.fail("ListJobs", "PERMISSION_DENIED"))
        wait_for_polls("the jobs to be watched after a refused list")

        for job in dataflow.jobs():
            job.move("STOPPED")  # so that each job is read with GetJob
        restart("key", lambda: dataflow.trouble.fail("GetJob", "NOT_FOUND"))
        wait_for_polls("the jobs to be watched after a job was not found")

        google.revoke()
        wait_for_cause("invalid_grant")
        google.mend()
        wait_for_polls("the jobs to be watched with the new key")

        for job in dataflow.jobs():
            job.move("DONE")
        for run in runs:
            run.wait_for("success")
