"""DAGs of tests/faults/test_log_storm.py: large DAGs of waits, Supervisors, and one that writes many lines."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from airflow.sdk import DAG

from deferrable_ops.operators.supervisor import (
    ProgramConfiguration,
    Supervisor,
    SupervisorAirflowConfiguration,
)
from deferrable_ops.operators.webhook import WebhookOperator

FOLDERS = Path(os.environ["SUPERVISOR_FOLDERS"])
TASKS = int(os.environ["STORM_TASKS"])
LINES_A_SECOND = int(os.environ["STORM_LINES_A_SECOND"])
SUPERVISORS = int(os.environ["STORM_SUPERVISORS"])

JOB = "{{ dag_run.conf['service'] }}/job"
LINES = Path(__file__).parents[1] / "support" / "lines.py"


def config(name: str, command: str) -> SupervisorAirflowConfiguration:
    return SupervisorAirflowConfiguration(
        working_dir=FOLDERS / name,
        program={"test": ProgramConfiguration(command=command)},
        check_interval=0.5,
        stopwaitsecs=5,
        forward_logs=True,
        command_timeout=600,
        reference_date="start_date",
    )


with DAG("storm_waits", schedule=None, max_active_runs=1_000, max_active_tasks=TASKS):
    for number in range(TASKS):
        WebhookOperator(
            task_id=f"job_{number}",
            url=JOB,
            json={"run_id": "{{ run_id }}", "task_id": f"job_{number}"},
            headers={"Callback-URL": "${callback_url}"},
        )

with DAG("storm_wait", schedule=None):
    WebhookOperator(task_id="job", url=JOB)

with DAG("storm_lines", schedule=None):
    Supervisor(cfg=config("lines", f"{sys.executable} {LINES} {LINES_A_SECOND} {FOLDERS / 'lines.end'}"))

for number in range(SUPERVISORS):
    with DAG(f"storm_supervisor_{number}", schedule=None):
        Supervisor(cfg=config(f"storm_{number}", "sh -c 'echo began; sleep 2; echo ended'"))
