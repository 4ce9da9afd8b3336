"""Launch a job on another service and wait for its callback. No worker runs at any time."""

from airflow.sdk import DAG

from deferrable_ops.operators.webhook import WebhookOperator

with DAG("example_webhook", schedule=None):
    WebhookOperator(
        task_id="train",
        url="{{ var.value.jobs_url }}/train",
        json={"model": "churn", "notify": "${callback_url}"},
        success_when="state == 'done'",
        failure_when="state == 'failed'",
    )
