"""Dataflow tasks as DAGs have them: the seed's own, mapped ones, the example, and dag.test()."""

from __future__ import annotations

from pathlib import Path

import pytest

from real_airflow import DONE, RUNNING, OutsideDataflow, RealAirflow

# Nothing of these depends on the inbox's database.
once = pytest.mark.parametrize("started_airflow", ["postgres"], indirect=True)


@pytest.fixture
def finishing(dataflow: OutsideDataflow) -> OutsideDataflow:
    """A Dataflow whose jobs end at once."""
    dataflow.script(dataflow.prefix, RUNNING, DONE)
    return dataflow


@once
def test_seeds_own_usage_launches_the_job_of_each_task(
    airflow: RealAirflow, finishing: OutsideDataflow
) -> None:
    run = airflow.trigger("dataflow_seed", {"job": finishing.prefix}).wait_for("success")

    for kind in ("first", "second"):
        [job] = finishing.jobs(f"{finishing.prefix}-{kind}")
        parameters = job.request["launchParameter"]
        assert parameters["containerSpecGcsPath"] == f"gs://tests/{kind}.json"
        assert parameters["parameters"] == {"kind": kind}
        assert run.task(kind).xcom()["id"] == job.id
    assert run.worker_processes() == 0


@once
def test_mapped_task_launches_a_job_for_each_value(airflow: RealAirflow, finishing: OutsideDataflow) -> None:
    run = airflow.trigger("dataflow_mapped", {"job": finishing.prefix}).wait_for("success")

    launched = {job.id: job.request["launchParameter"]["parameters"]["n"] for job in finishing.jobs()}
    described = [run.task("job", index).xcom() for index in range(3)]
    assert [launched[job["id"]] for job in described] == ["0", "1", "2"]
    assert len({job["name"] for job in described}) == len(finishing.jobs()) == 3
    assert [run.task("job", index).worker_processes() for index in range(3)] == [1, 1, 1]


def test_example_runs_on_the_fake(airflow: RealAirflow, dataflow: OutsideDataflow) -> None:
    run = airflow.trigger("example_dataflow")
    task = run.task("load_orders")
    run.wait_for("success")

    [load] = [job for job in dataflow.jobs("load-orders-") if job.id == task.xcom("job_id")]
    assert load.request["launchParameter"]["parameters"] == {"date": run.run_id.split("__")[1][:10]}
    assert load.labels["team"] == "orders"
    assert run.task("count_words").xcom("job")["currentState"] == "JOB_STATE_DONE"
    assert run.task("drain_the_old_stream").xcom() == []
    assert run.worker_processes() == 0


@once
@pytest.mark.long  # test_webhook_ways.py and test_high_availability_ways.py run dag.test() in every run
def test_dag_test_runs_the_whole_wait(airflow: RealAirflow, finishing: OutsideDataflow) -> None:
    failing = finishing.new_prefix()
    finishing.script(failing, RUNNING, {"state": "FAILED", "message": "no such bucket"})
    file = Path(__file__).parent / "dags" / "dataflow.py"
    program = (
        "from airflow.dag_processing.dagbag import DagBag\n"
        f"dag = DagBag({str(file)!r}, bundle_name='dags').dags['dataflow_flex']\n"
        f"for job in ({finishing.prefix!r}, {failing!r}):\n"
        "    print(dag.test(run_conf={'job': job}).state)\n"
    )
    with airflow.paused("dataflow_flex"):
        printed = airflow.run_python(program, timeout=120)
    states = [line for line in printed.splitlines() if line in ("success", "failed")]
    assert states == ["success", "failed"]
    assert len(finishing.jobs()) == len(finishing.jobs(failing)) == 1
