"""What tests/airflow/test_harness.py runs: Airflow's own operators, and the smallest trigger there is."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, task
from harness_wait import FileOperator

FILE = "{{ dag_run.conf['file'] }}"

with DAG("harness_on_workers", schedule=None):
    BashOperator(task_id="bash", bash_command="echo 1")

    @task
    def number(value: int) -> dict[str, Any]:
        return {"value": value, "text": '"quoted"'}

    number.expand(value=[10, 20])

    @task(retries=1, retry_delay=timedelta(seconds=0))
    def second_time_lucky(**context: Any) -> str:
        if context["ti"].try_number == 1:
            raise RuntimeError("the first time fails")
        return "1"

    second_time_lucky()

with DAG("harness_in_the_triggerer", schedule=None):
    FileOperator(task_id="wait", path=FILE)

with DAG("harness_between_two_workers", schedule=None):
    FileOperator(task_id="wait", path=FILE, through_a_worker=True)
