"""DAGs of tests/airflow/test_supervisor.py; each supervisord has its own folder."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, AsyncCallback, TaskGroup

from deferrable_ops.operators.supervisor import (
    AirflowConfiguration,
    ProgramConfiguration,
    ProgramPolicy,
    Supervisor,
    SupervisorAirflowConfiguration,
    SupervisorSSH,
    SupervisorSSHAirflowConfiguration,
)

FOLDERS = Path(os.environ.get("SUPERVISOR_FOLDERS", "/var/tmp/supervisor-tests"))
COMMAND_PREFIX = os.environ.get("REMOTE_COMMAND_PREFIX", "")
SOON_OVER = "sh -c 'echo began; sleep 2; echo ended'"


def config(name: str, command: str, **fields: Any) -> SupervisorAirflowConfiguration:
    kind = SupervisorSSHAirflowConfiguration if name.startswith("ssh") else SupervisorAirflowConfiguration
    program = {"test": ProgramConfiguration(command=command, **fields.pop("program", {}))}
    return kind(
        **{
            "working_dir": FOLDERS / name,
            "program": program,
            "check_interval": 0.5,
            "stopwaitsecs": 5,
            "reference_date": "start_date",
            "maxretrigger": 1,
            **fields,
        }
    )


def run_here_and_over_ssh(name: str, command: str, **fields: Any) -> None:
    """Create two DAGs with these programs."""
    with DAG(f"sup_{name}", schedule=None), TaskGroup("watched"):
        Supervisor(cfg=config(name, command, **fields))
    with DAG(f"sup_ssh_{name}", schedule=None):
        SupervisorSSH(cfg=config(f"ssh_{name}", command, **fields), command_prefix=COMMAND_PREFIX)


with DAG("sup_ends", schedule=None):
    supervisor = Supervisor(
        cfg=config("ends", SOON_OVER, forward_logs=True, username="airflow", password="hunter2secret")
    )
    EmptyOperator(task_id="before") >> supervisor >> EmptyOperator(task_id="after")

for ssh_name, ssh_command in (("ssh_ends", SOON_OVER), ("ssh_killed", "sleep 14400")):
    with DAG(f"sup_{ssh_name}", schedule=None):
        SupervisorSSH(
            cfg=config(ssh_name, ssh_command, forward_logs=True),
            command_prefix=COMMAND_PREFIX,
        )

with DAG("sup_goes_on", schedule=None):
    Supervisor(cfg=config("goes_on", SOON_OVER, stop_on_exit=False))

run_here_and_over_ssh("fails", "sh -c 'sleep 2; exit 1'", policy=ProgramPolicy(exit_codes={1: "fail"}))

run_here_and_over_ssh(
    "loops",
    "sh -c 'sleep 1.2; exit 1'",
    program={"autorestart": True, "startsecs": 1},
    policy=ProgramPolicy(crash_restarts=2, crash_give_up=0, otherwise="fail"),
)

with DAG("sup_notices", schedule=None):
    Supervisor(
        cfg=config(
            "notices",
            "sh -c 'echo last words; sleep 1.2; exit 3'",
            program={"autorestart": True, "startsecs": 1},
            policy=ProgramPolicy(crash_restarts=2, crash_give_up=0, otherwise="fail"),
        ),
        on_program_event=AsyncCallback(
            "program_notices.Pager",
            kwargs={"conn_id": "pager", "text": "{{ event.kind }} in {{ ti.task_id }}"},
        ),
    )

run_here_and_over_ssh("never_ends", "sleep 14400", runtime=45)

# The program fails in the first run, and leaves a file for that of the second run.
run_here_and_over_ssh("restarts", "sh -c 'sleep 2; test -e again || { touch again; exit 1; }'")

with DAG("sup_crashes", schedule=None):
    Supervisor(cfg=config("crashes", "sh -c 'sleep 2; exit 1'", maxretrigger=2, retrigger_delay=12))

run_here_and_over_ssh("force_killed", "sleep 14400", maxretrigger=0)

# The example of airflow-supervisor's README, with another folder and module name.
cfg = SupervisorAirflowConfiguration(
    airflow=AirflowConfiguration(port="*:9091"),
    working_dir=str(FOLDERS / "seed"),
    config_path=str(FOLDERS / "seed" / "supervisor.conf"),
    program={
        "test": ProgramConfiguration(
            command="bash -c 'sleep 14400; exit 1'",
        )
    },
)

with DAG(
    dag_id="test-supervisor",
    schedule=timedelta(days=1),
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    is_paused_upon_creation=True,
) as dag:
    seed = Supervisor(dag=dag, cfg=cfg)
