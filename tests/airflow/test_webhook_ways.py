"""Tasks that start or end on a worker, because Airflow does some things only there."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from real_airflow import Answer, OutsideService, RealAirflow, Run, wait_until


def trace_of(run: Run) -> Path:
    """Return the file that the callback of the DAG file creates."""
    return Path(tempfile.gettempdir(), f"called-{run.run_id}")


@pytest.fixture
def answering(outside: OutsideService) -> OutsideService:
    """A service that calls back at once."""
    outside.script("/job", Answer(callback={"answer": 42}))
    return outside


def test_mapped_over_three_values(airflow: RealAirflow, answering: OutsideService) -> None:
    run = airflow.trigger("webhook_mapped", {"service": answering.url}).wait_for("success")

    assert sorted(request.body["n"] for request in answering.requests("/job")) == [1, 2, 3]
    for index in range(3):
        task = run.task("job", index)
        assert task.xcom() == {"answer": 42}
        assert task.worker_processes() == 1


def test_mapped_over_an_upstreams_xcom(airflow: RealAirflow, answering: OutsideService) -> None:
    run = airflow.trigger("webhook_mapped_over_xcom", {"service": answering.url}).wait_for("success")

    assert sorted(request.body["n"] for request in answering.requests("/job")) == [1, 2]
    assert [run.task("job", index).worker_processes() for index in range(2)] == [1, 1]


def test_in_a_mapped_task_group(airflow: RealAirflow, answering: OutsideService) -> None:
    run = airflow.trigger("webhook_in_mapped_group", {"service": answering.url}).wait_for("success")

    assert sorted(request.body["n"] for request in answering.requests("/job")) == [1, 2]
    assert [run.task("group.job", index).worker_processes() for index in range(2)] == [1, 1]


def test_tasks_mapped_over_its_output(airflow: RealAirflow, outside: OutsideService) -> None:
    outside.script("/job", Answer(callback=[1, 2, 3]))
    run = airflow.trigger("webhook_mapped_dependant", {"service": outside.url}).wait_for("success")

    assert [run.task("double", index).xcom() for index in range(3)] == [2, 4, 6]
    assert run.task("job").worker_processes() == 1


def test_output_of_another_task_and_xcom_pull(airflow: RealAirflow, answering: OutsideService) -> None:
    run = airflow.trigger("webhook_upstream_xcom", {"service": answering.url}).wait_for("success")

    [request] = answering.requests("/job")
    assert request.body == {"n": 7}
    assert request.headers["x-pulled"] == "7"
    assert run.task("job").worker_processes() == 1


def test_outlets_and_success_callback_take_effect(airflow: RealAirflow, answering: OutsideService) -> None:
    run = airflow.trigger("webhook_outlets", {"service": answering.url}).wait_for("success")

    assert run.task("job").worker_processes() == 1
    wait_until(trace_of(run).exists, "on_success_callback to be called")
    wait_until(lambda: airflow.runs_of("webhook_outlets_consumer"), "the asset's consumer to run")


def test_failure_callback_needs_no_worker(airflow: RealAirflow, outside: OutsideService) -> None:
    run = airflow.trigger("webhook_failure_callback", {"service": outside.url})
    [request] = outside.wait_for_requests("/job")
    outside.call_back(request, {}, "failure")

    run.wait_for("failed")
    wait_until(trace_of(run).exists, "on_failure_callback to be called")
    assert run.worker_processes() == 0


def test_pool_of_one_slot_is_respected(airflow: RealAirflow, answering: OutsideService) -> None:
    airflow.client.post("/pools", {"name": "one_slot", "slots": 1})
    run = airflow.trigger("webhook_pool", {"service": answering.url}).wait_for("success")

    assert [run.task(f"job_{number}").worker_processes() for number in range(2)] == [1, 1]


def test_operator_with_the_mixin_works_on_a_worker_and_waits_in_the_triggerer(
    airflow: RealAirflow, answering: OutsideService
) -> None:
    run = airflow.trigger("webhook_mixin", {"service": answering.url}).wait_for("success")

    task = run.task("job")
    assert task.xcom() == {"answer": 42}
    assert task.xcom("launched") == "posted"
    assert task.worker_processes() == 1
    [request] = answering.requests("/job")
    assert request.callback_url.rpartition("/")[2] not in task.log()


def test_taskflow_function_receives_the_url_and_its_output_is_the_payload(
    airflow: RealAirflow, answering: OutsideService
) -> None:
    run = airflow.trigger("webhook_taskflow", {"service": answering.url}).wait_for("success")

    assert run.task("launch").xcom() == {"answer": 42}
    assert run.task("read").xcom() == 42
    assert run.task("launch").worker_processes() == 1


@pytest.mark.parametrize(
    "verb, succeeds", [("success", True), pytest.param("failure", False, marks=pytest.mark.long)]
)
def test_dag_test_runs_the_whole_wait(
    airflow: RealAirflow, outside: OutsideService, verb: str, succeeds: bool
) -> None:
    file = Path(__file__).parent / "dags" / "webhook.py"
    program = (
        "from airflow.dag_processing.dagbag import DagBag\n"
        f"dag = DagBag({str(file)!r}, bundle_name='dags').dags['webhook_plain']\n"
        f"print(dag.test(run_conf={{'service': {outside.url!r}}}).state)\n"
    )
    with airflow.paused("webhook_plain"):
        process = subprocess.Popen(
            [sys.executable, "-c", program], env=airflow.environment, text=True, stdout=subprocess.PIPE
        )
        [request] = outside.wait_for_requests("/job")
        outside.call_back(request, {"answer": 1}, verb)
        printed, _ = process.communicate(timeout=120)
    assert printed.splitlines()[-1] == ("success" if succeeds else "failed")


@pytest.mark.long
def test_listener_is_notified_of_the_success(
    airflow: RealAirflow, answering: OutsideService, tmp_path: Path
) -> None:
    heard = tmp_path / "heard"
    for component in (airflow.scheduler, airflow.triggerer):
        component.kill()
        airflow.start_component(component, {"LISTENER_FILE": str(heard)})

    run = airflow.trigger("webhook_plain", {"service": answering.url}).wait_for("success")

    assert heard.read_text() == "webhook_plain.job\n"
    assert run.task("job").worker_processes() == 1
