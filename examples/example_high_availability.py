"""Check a service in the Triggerer. A worker runs only to start the DAG again.

Trigger `example_high_availability` and open its Grid. The service is Airflow's own API server, which is healthy, so the
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
    """Bring the service back. Meanwhile the next run of the DAG starts."""
    return f"restarted {SERVICE}"


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


def count_down(dag_run, **context):
    """Return the result of the check. It runs on a worker, because a triggerer cannot import a DAG file."""
    counter = int(dag_run.conf.get("counter", 2))
    return (Result.PASS, Action.RETRIGGER) if counter > 0 else (Result.PASS, Action.STOP)


with DAG("example_high_availability_countdown", schedule=None):
    HighAvailabilityOperator(
        task_id="count",
        python_callable=count_down,
        pass_trigger_kwargs={"conf": {"counter": "{{ dag_run.conf.get('counter', 2) | int - 1 }}"}},
    )
