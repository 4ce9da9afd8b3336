"""What tests/airflow/test_webhook_*.py run. The outside service's address comes with the run's conf."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, Asset, task, task_group

from deferrable_ops import fetch
from deferrable_ops.operators.webhook import WebhookOperator, WebhookOperatorMixin, WebhookSensor

SERVICE = "{{ dag_run.conf['service'] }}"
JOB = f"{SERVICE}/job"
CANCEL = {"url": f"{SERVICE}/cancel/${{wait_id}}", "method": "DELETE"}


def leave_a_trace(context: Any) -> None:
    # A callback after an end in the triggerer is given little more than the run's id.
    Path(tempfile.gettempdir(), f"called-{context['run_id']}").touch()


with DAG("webhook_plain", schedule=None):
    WebhookOperator(task_id="job", url=JOB, json={"date": "{{ ds }}", "notify": "${callback_url}"})

with DAG("webhook_expressions", schedule=None):
    WebhookOperator(
        task_id="job",
        url=JOB,
        success_when="state == 'done'",
        failure_when="state == 'failed'",
        result="metrics",
        heartbeat_timeout=timedelta(minutes=5),
    )

with DAG("webhook_retries", schedule=None):
    WebhookOperator(task_id="job", url=JOB, retries=1, retry_delay=timedelta(seconds=1))

with DAG("webhook_timeout", schedule=None):
    WebhookOperator(task_id="job", url=JOB, timeout=30, cancel_request=CANCEL)

with DAG("webhook_execution_timeout", schedule=None):
    WebhookOperator(task_id="job", url=JOB, execution_timeout=timedelta(seconds=30), cancel_request=CANCEL)

with DAG("webhook_heartbeat", schedule=None):
    WebhookOperator(task_id="job", url=JOB, heartbeat_timeout=10, cancel_request=CANCEL)

with DAG("webhook_cancel", schedule=None):
    WebhookOperator(task_id="job", url=JOB, cancel_request=CANCEL)

with DAG("webhook_relaunch", schedule=None):
    WebhookOperator(task_id="job", url=JOB, relaunch_when_lost=True)

with DAG("webhook_launch_fails", schedule=None):
    WebhookOperator(task_id="job", url=JOB, launch_timeout=5, json={"notify": "${callback_url}"})

with DAG("webhook_bad_template", schedule=None):
    WebhookOperator(
        task_id="job",
        url="{{ dag_run.conf['service'] }}",
        success_when="{{ params.when }}",
        params={"when": "a ="},
    )

with DAG("webhook_mapped", schedule=None):
    WebhookOperator.partial(task_id="job", url=JOB).expand(json=[{"n": 1}, {"n": 2}, {"n": 3}])

with DAG("webhook_mapped_over_xcom", schedule=None):

    @task
    def numbers() -> list[dict[str, int]]:
        return [{"n": 1}, {"n": 2}]

    WebhookOperator.partial(task_id="job", url=JOB).expand(json=numbers())

with DAG("webhook_in_mapped_group", schedule=None):

    @task_group
    def group(n: int) -> None:
        WebhookOperator(task_id="job", url=JOB, json={"n": n})

    group.expand(n=[1, 2])

with DAG("webhook_mapped_dependant", schedule=None):
    job = WebhookOperator(task_id="job", url=JOB)

    @task
    def double(number: int) -> int:
        return 2 * number

    double.expand(number=job.output)

with DAG("webhook_large_value", schedule=None):
    job = WebhookOperator(task_id="job", url=JOB)

    @task
    def measure(reference: Any) -> int:
        return len(fetch(reference)["text"])

    measure(job.output)

with DAG("webhook_upstream_xcom", schedule=None):

    @task
    def name() -> dict[str, int]:
        return {"n": 7}

    WebhookOperator(
        task_id="job", url=JOB, json=name(), headers={"X-Pulled": "{{ ti.xcom_pull('name')['n'] }}"}
    )

with DAG("webhook_outlets", schedule=None):
    WebhookOperator(
        task_id="job", url=JOB, outlets=[Asset("webhook_done")], on_success_callback=leave_a_trace
    )

with DAG("webhook_outlets_consumer", schedule=[Asset("webhook_done")]):
    PythonOperator(task_id="ran", python_callable=lambda: "ran")

with DAG("webhook_failure_callback", schedule=None):
    WebhookOperator(task_id="job", url=JOB, on_failure_callback=leave_a_trace)

with DAG("webhook_pool", schedule=None):
    for number in range(2):
        WebhookOperator(task_id=f"job_{number}", url=JOB, pool="one_slot")

with DAG("webhook_two_dozen", schedule=None):
    for number in range(24):
        WebhookOperator(task_id=f"job_{number}", url=JOB, json={"n": number})

with DAG("webhook_sensor", schedule=None):
    WebhookSensor(task_id="wait", publish_url=True)


class PythonAsyncOperator(WebhookOperatorMixin, PythonOperator):
    """The seed's operator."""


def post(callback_url: str, service: str) -> str:
    import httpx

    httpx.post(f"{service}/job", json={"notify": callback_url}, trust_env=False).raise_for_status()
    return "posted"


with DAG("webhook_mixin", schedule=None):
    PythonAsyncOperator(task_id="job", python_callable=post, op_kwargs={"service": SERVICE})

with DAG("webhook_taskflow", schedule=None):

    @task.webhook
    def launch(service: str, callback_url: str) -> str:
        return post(callback_url, service)

    @task
    def read(payload: dict[str, Any]) -> int:
        number: int = payload["answer"]
        return number

    read(launch(SERVICE))
