"""What tests/faults/test_teams.py runs: the DAGs of one team, which is named like the folder of this file."""

from __future__ import annotations

from pathlib import Path

from airflow.sdk import DAG

from deferrable_ops.operators.webhook import WebhookOperator

TEAM = Path(__file__).parent.name

with DAG(f"{TEAM}_by_connection", schedule=None):
    # `jobs` is a connection in the environment of each team's triggerer.
    WebhookOperator(
        task_id="job",
        http_conn_id="jobs",
        path="/job",
        cancel_request={"http_conn_id": "jobs", "path": "/cancel", "method": "DELETE"},
    )

with DAG(f"{TEAM}_by_stored_connection", schedule=None):
    # A connection that belongs to the team in Airflow's database.
    WebhookOperator(task_id="job", http_conn_id=f"stored_{TEAM}", path="/job")
