"""Launches Dataflow jobs, waits for them in the Triggerer, and drains old jobs.

To try it without Google Cloud, run `python -m deferrable_ops.testing.dataflow --port 8085` and start Airflow with
AIRFLOW__DEFERRABLE_OPS__DATAFLOW_EMULATOR_HOST=localhost:8085.
"""

import os
from datetime import timedelta

from airflow.sdk import DAG

from deferrable_ops.operators.dataflow import (
    DataflowFlexTemplateOperator,
    DataflowStopJobOperator,
    DataflowTemplateOperator,
)

PROJECT = os.environ.get("GCP_PROJECT", "my-project")
REGION = os.environ.get("GCP_REGION", "europe-west1")

with DAG("example_dataflow", schedule=None):
    load = DataflowFlexTemplateOperator(
        task_id="load_orders",
        project_id=PROJECT,
        region=REGION,
        body={
            "containerSpecGcsPath": f"gs://{PROJECT}-templates/orders.json",
            "parameters": {"date": "{{ dag_run.run_after | ds }}"},
            "environment": {"maxWorkers": 4},
        },
        labels={"team": "orders"},
        timeout=timedelta(hours=2),
        retries=1,
    )
    count = DataflowTemplateOperator(
        task_id="count_words",
        project_id=PROJECT,
        region=REGION,
        template="gs://dataflow-templates/latest/Word_Count",
        parameters={
            "inputFile": "gs://dataflow-samples/shakespeare/kinglear.txt",
            "output": f"gs://{PROJECT}/count",
        },
        on_kill="leave",
    )
    stop = DataflowStopJobOperator(
        task_id="drain_the_old_stream",
        project_id=PROJECT,
        region=REGION,
        job_name_prefix="orders-stream",
        how="drain",
    )
    load >> [count, stop]
