"""The DAGs of the bench: each has tasks that wait for a callback, or tasks of plain Airflow that wait for a file."""

from __future__ import annotations

import os
from typing import Any

from airflow.sdk import DAG, BaseOperator
from airflow.triggers.base import StartTriggerArgs

from deferrable_ops.operators.webhook import WebhookSensor

DAGS = int(os.environ["BURST_DAGS"])
TASKS = int(os.environ["BURST_TASKS"])
FOLDER = os.environ.get("BURST_FOLDER")


class BareOperator(BaseOperator):
    """A task that only its trigger runs."""

    start_from_trigger = True

    def __init__(self, moment: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start_trigger_args = StartTriggerArgs(
            "bench.bursts.triggers.BareTrigger",
            trigger_kwargs={"folder": FOLDER, "moment": moment},
            next_method="resume",
        )

    def resume(self, context: Any, event: Any) -> None:
        raise NotImplementedError("the trigger ends the task")


for n in range(DAGS):
    with DAG(f"ours_{n}", schedule=None, max_active_tasks=TASKS) as dag:
        globals()[dag.dag_id] = dag
        for k in range(TASKS):
            WebhookSensor(task_id=f"task_{k}")
    if FOLDER is not None:
        with DAG(f"bare_{n}", schedule=None, max_active_tasks=TASKS) as dag:
            globals()[dag.dag_id] = dag
            for k in range(TASKS):
                BareOperator(task_id=f"task_{k}", moment=(n * TASKS + k) / (DAGS * TASKS))
