"""Run programs under supervisord during a DAG run, without a worker.

Trigger `example_supervisor`, and read the log of `example_supervisor-check-programs`: it contains the output of the
programs. After about ten seconds they have ended, and supervisord and its files are removed.
"""

from datetime import timedelta

from airflow.sdk import DAG, task

from deferrable_ops.operators.supervisor import (
    ProgramConfiguration,
    ProgramPolicy,
    Supervisor,
    SupervisorAirflowConfiguration,
)

cfg = SupervisorAirflowConfiguration(
    program={
        "greeter": ProgramConfiguration(command="sh -c 'for n in 1 2 3; do echo hello $n; sleep 2; done'"),
        "importer": ProgramConfiguration(command="sh -c 'sleep 4; exit 3'"),
    },
    policies={"importer": ProgramPolicy(exit_codes={0: "success", 3: "success"})},
    check_interval=2,
    check_timeout=timedelta(hours=8),
    endtime="23:30",
    maxretrigger=5,
    forward_logs=True,
)


@task
def page() -> str:
    """Replace this with a task that alerts someone. The programs are restarted with or without it."""
    return "a program of example_supervisor has died"


with DAG("example_supervisor", schedule=None):
    supervisor = Supervisor(cfg=cfg)
    supervisor.check_programs.retrigger_fail >> page()
