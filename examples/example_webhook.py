"""Launch a job somewhere else, and be told when it is done. No worker runs at any time."""

import os

from airflow.sdk import DAG

from deferrable_ops.operators.webhook import WebhookOperator

with DAG("example_webhook", schedule=None):
    WebhookOperator(
        task_id="train",
        url=os.environ.get("JOBS_URL", "http://localhost:8765") + "/train",
        json={"model": "churn", "date": "{{ ds }}", "notify": "${callback_url}"},
        success_when="state == 'done'",
        failure_when="state == 'failed'",
        result="metrics",
    )
