"""What tests/airflow/test_webhook_secrets.py runs: a request that is full of secrets, a connection's and our own."""

from __future__ import annotations

from airflow.sdk import DAG

from deferrable_ops.operators.webhook import WebhookOperator

PASSWORD = "{{ conn.jobs_with_secrets.password }}"

with DAG("webhook_secrets", schedule=None):
    WebhookOperator(
        task_id="job",
        http_conn_id="jobs_with_secrets",
        path="/job",
        headers={
            "X-Password": PASSWORD,
            "X-Sentence": f"say {PASSWORD}, friend",
            "X-Token": "${callback_token}",
        },
        json={"notify": "${callback_url}", "password": PASSWORD},
        cancel_request={
            "http_conn_id": "jobs_with_secrets",
            "path": "/cancel/${callback_token}",
            "headers": {"X-Password": PASSWORD},
        },
    )
