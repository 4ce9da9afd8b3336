"""Run programs under supervisord on another machine, over SSH, without a worker and without an open port.

The machine needs `supervisor`, and an account for the Airflow connection `ssh_default`:
    airflow connections add ssh_default --conn-type ssh --conn-host jobs.example.com --conn-login airflow \
        --conn-extra '{"key_file": "/home/airflow/.ssh/id_ed25519"}'
"""

import os

from airflow.sdk import DAG

from deferrable_ops.operators.supervisor import (
    ProgramConfiguration,
    SupervisorSSH,
    SupervisorSSHAirflowConfiguration,
)

cfg = SupervisorSSHAirflowConfiguration(
    ssh_conn_id="ssh_default",
    command_prefix=os.environ.get("REMOTE_COMMAND_PREFIX", ""),
    working_dir=os.environ.get("REMOTE_WORKING_DIR", "/home/airflow/example-supervisor"),
    program={
        "greeter": ProgramConfiguration(command="sh -c 'for n in 1 2 3; do echo hello $n; sleep 2; done'")
    },
    check_interval=2,
    forward_logs=True,
)

with DAG("example_supervisor_ssh", schedule=None):
    SupervisorSSH(cfg=cfg)
