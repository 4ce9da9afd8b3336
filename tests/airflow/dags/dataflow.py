"""What tests/airflow/test_dataflow_*.py run. What the jobs' names begin with comes with the run's conf."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, task

from deferrable_ops.operators.dataflow import (
    DataflowFlexTemplateOperator,
    DataflowJobSensor,
    DataflowStopJobOperator,
    DataflowTemplateOperator,
    DeferrableDataflowOperator,
)

JOB = "{{ dag_run.conf['job'] }}"
PLACE: dict[str, Any] = {"project_id": "tests", "region": "europe-west1", "poll_interval": 1}
FLEX: dict[str, Any] = {
    **PLACE,
    "job_name": JOB,
    "body": {
        "containerSpecGcsPath": "gs://tests/template.json",
        "parameters": {"date": "{{ ds }}", "numbers": 7},
        "environment": {"maxWorkers": 4, "additionalUserLabels": {"from": "body"}},
    },
}
CLASSIC: dict[str, Any] = {
    **PLACE,
    "job_name": JOB,
    "template": "gs://tests/classic",
    "parameters": {"date": "{{ ds }}"},
    "environment": {"max_workers": 2},
}

with DAG("dataflow_flex", schedule=None):
    DataflowFlexTemplateOperator(task_id="job", labels={"team": "orders"}, **FLEX)

with DAG("dataflow_classic", schedule=None):
    DataflowTemplateOperator(task_id="job", **CLASSIC)

with DAG("dataflow_retries", schedule=None):
    DataflowFlexTemplateOperator(task_id="job", retries=1, retry_delay=timedelta(seconds=1), **FLEX)

with DAG("dataflow_timeout", schedule=None):
    DataflowFlexTemplateOperator(task_id="job", timeout=12, **FLEX)

with DAG("dataflow_drained", schedule=None):
    DataflowFlexTemplateOperator(task_id="job", expected_state="drained", on_kill="drain", **FLEX)

with DAG("dataflow_updated", schedule=None):
    DataflowFlexTemplateOperator(
        task_id="job",
        append_job_name=False,
        update=True,
        transform_name_mapping={"Read": "ReadOrders"},
        expected_state="drained",
        on_kill="leave",
        on_timeout="drain",
        **FLEX,
    )

with DAG("dataflow_default_account", schedule=None):
    without_project = {name: value for name, value in FLEX.items() if name != "project_id"}
    DataflowFlexTemplateOperator(task_id="job", **without_project)

with DAG("dataflow_leave", schedule=None):
    DataflowFlexTemplateOperator(task_id="job", on_kill="leave", **FLEX)

with DAG("dataflow_impersonated", schedule=None):
    DataflowFlexTemplateOperator(
        task_id="job", impersonation_chain="loader@tests.iam.gserviceaccount.com", **FLEX
    )

with DAG("dataflow_stream_then_drain", schedule=None):
    stream = DataflowFlexTemplateOperator(task_id="stream", **FLEX)
    DataflowStopJobOperator(task_id="drain", job_id=stream.output["job_id"], how="drain", **PLACE)

with DAG("dataflow_stop", schedule=None):
    DataflowStopJobOperator(task_id="stop", job_name_prefix=JOB, **PLACE)

with DAG("dataflow_sensor", schedule=None):
    DataflowJobSensor(task_id="wait", job_id="{{ dag_run.conf['job_id'] }}", **PLACE)

with DAG("dataflow_accepted", schedule=None):
    job = DataflowFlexTemplateOperator(task_id="job", wait_until_finished=False, **FLEX)

    @task
    def read(described: dict[str, Any]) -> str:
        name: str = described["name"]
        return name

    read(job.output)

with DAG("dataflow_seed", schedule=None):
    for kind in ("first", "second"):
        DeferrableDataflowOperator(
            task_id=kind,
            trigger_kwargs={
                "project_id": "tests",
                "region": "europe-west1",
                "body": {
                    "job_name": f"{JOB}-{kind}",
                    "parameters": {"kind": kind},
                    "environment": {"max_workers": 2},
                    "container_spec_gcs_path": f"gs://tests/{kind}.json",
                },
            },
            start_from_trigger=True,
        )

with DAG("dataflow_mapped", schedule=None):
    DataflowFlexTemplateOperator.partial(task_id="job", **{**PLACE, "job_name": JOB}).expand(
        body=[
            {"containerSpecGcsPath": "gs://tests/template.json", "parameters": {"n": str(number)}}
            for number in range(3)
        ]
    )

with DAG("dataflow_many", schedule=None):
    # Two places, each with its own client and its own limit of launches under way.
    for number in range(25):
        DataflowFlexTemplateOperator(task_id=f"flex_{number}", **{**FLEX, "job_name": f"{JOB}-flex"})
        DataflowTemplateOperator(
            task_id=f"classic_{number}", **{**CLASSIC, "region": "europe-west4", "job_name": f"{JOB}-classic"}
        )
