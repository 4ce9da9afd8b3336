"""Watch over a service in the Triggerer. No worker runs but to start the DAG again.

Trigger `example_high_availability` and look at its Grid: the service is Airflow's own API server, which is well, so the
run ends after twenty seconds. `example_high_availability_countdown` starts itself twice.
"""

import os
from datetime import timedelta

from airflow.sdk import DAG, task
from airflow.sdk.configuration import conf

from deferrable_ops.operators.high_availability import Action, HighAvailabilityOperator, HttpCheck, Result

AIRFLOW = conf.get("api", "base_url", fallback="http://localhost:8080")
SERVICE = os.environ.get("SERVICE_URL", f"{AIRFLOW}/api/v2/version")


@task
def restart() -> str:
    """Stand for whatever brings the service back. The next run of the DAG is on its way then."""
    return f"{SERVICE} is started again"


with DAG("example_high_availability", schedule=None):
    watch = HighAvailabilityOperator(
        task_id="watch",
        python_callable=HttpCheck(SERVICE),
        poke_interval=5,
        failure_threshold=3,
        runtime=timedelta(seconds=20),
        reference_date="start_date",
        maxretrigger=5,
    )
    watch.retrigger_fail >> restart()


def is_over(dag_run, **context):
    """Be called on a worker, because a triggerer cannot import a DAG's file."""
    counter = int(dag_run.conf.get("counter", 2))
    return (Result.PASS, Action.RETRIGGER) if counter > 0 else (Result.PASS, Action.STOP)


with DAG("example_high_availability_countdown", schedule=None):
    HighAvailabilityOperator(
        task_id="count",
        python_callable=is_over,
        pass_trigger_kwargs={"conf": {"counter": "{{ dag_run.conf.get('counter', 2) | int - 1 }}"}},
    )
