"""Programs under a supervisord of their own, for as long as a DAG run lasts. No worker runs.

Trigger `example_supervisor` and look at its Grid, and at the log of `example_supervisor-check-programs`, which holds
what the programs say. After ten seconds they have ended, and supervisord is gone with all its files.
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
    """Stand for whatever tells somebody. Without it, the programs would be started again all the same."""
    return "a program of example_supervisor has died"


with DAG("example_supervisor", schedule=None):
    supervisor = Supervisor(cfg=cfg)
    supervisor.check_programs.retrigger_fail >> page()
