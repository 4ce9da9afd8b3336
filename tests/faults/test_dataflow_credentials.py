"""A triggerer that restarts while credentials or reads fail: no task fails, and no Dataflow job is cancelled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.support.google_thread import GoogleThread

from deferrable_ops.testing.dataflow import Step
from real_airflow import RealAirflow, Run, wait_until

COUNT = 5
AWAY = 0
GOOGLE_PROVIDER = "apache-airflow-providers-google==22.8.0"


@pytest.fixture
def google_provider(tmp_path: Path) -> Path:
    """Return a folder for `PYTHONPATH` with the google provider and everything that it needs beside this Airflow."""
    folder = tmp_path / "google_provider"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    # pip then installs only what is missing here.
    (packages / "here.pth").write_text(sysconfig.get_path("purelib"))
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-compile", GOOGLE_PROVIDER]
    subprocess.run(install, check=True, timeout=900)
    return packages


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


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("started_airflow", ["postgres"], indirect=True)
def test_task_without_project_and_connection_uses_the_default_ones(
    airflow: RealAirflow, google_provider: Path, tmp_path: Path
) -> None:
    with GoogleThread(tmp_path).running() as servers:
        servers.dataflow.script("default", Step("RUNNING"), Step("DONE"))
        key = servers.environment("key")

        def launched_with(environment: dict[str, str], name: str) -> str:
            airflow.triggerer.kill()
            airflow.start_component(airflow.triggerer, environment)
            run = airflow.trigger("dataflow_default_account", {"job": name}).wait_for("success")
            [job] = [job for job in servers.dataflow.jobs() if job.name.startswith(name)]
            assert run.task("job").xcom()["id"] == job.id
            return job.project_id

        # The project of the key file.
        assert launched_with(key, "default-of-the-key") == "my-project"

        # With the google provider, the connection google_cloud_default has its own project and its own key.
        connection = {
            "conn_type": "google_cloud_platform",
            "extra": {"project": "of-the-connection", "key_path": key["GOOGLE_APPLICATION_CREDENTIALS"]},
        }
        with_provider = key | {
            "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": json.dumps(connection),
            "GOOGLE_APPLICATION_CREDENTIALS": "",
            "PYTHONPATH": os.pathsep.join([key["PYTHONPATH"], str(google_provider)]),
        }
        assert launched_with(with_provider, "default-of-the-connection") == "of-the-connection"
