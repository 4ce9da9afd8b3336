"""Wait for events of other systems and other DAGs. No worker process runs while a task waits.

Trigger `example_events` and look at its gate in the Grid. Then trigger `example_events_publish`, which releases it.
`example_events_sources` shows a wait for Kafka, SQS and a channel; it needs their connections to run.
"""

from datetime import timedelta

from airflow.sdk import DAG, task

from deferrable_ops.events import ChannelEvent, KafkaEvent, SqsEvent
from deferrable_ops.operators.events import MultiEventSensor, PublishEventOperator, event_gate

TODAY = "{{ dag_run.run_after | ds }}"


@task
def report() -> str:
    """Stand for the work that needs all tables."""
    return "all tables of the day are loaded"


with DAG("example_events", schedule=None):
    gate = event_gate(
        "tables",
        events={
            name: ChannelEvent("tables", match={"table": name, "date": TODAY})
            for name in ("orders", "payments")
        },
        # Events of today count, even if they arrived before this run.
        since="day",
        timeout=timedelta(hours=6),
    )
    gate >> report()

with DAG("example_events_publish", schedule=None):
    for name in ("orders", "payments"):
        PublishEventOperator(
            task_id=f"publish_{name}", channel="tables", payload={"table": name, "date": TODAY}
        )

with DAG("example_events_sources", schedule=None):
    MultiEventSensor(
        task_id="ready",
        events={
            "orders": KafkaEvent("etl-finish", match={"table": "orders", "date": TODAY}),
            "payments": SqsEvent(
                "https://sqs.eu-west-1.amazonaws.com/123456789012/payments",
                dedicated=True,
                match="status == 'done' && amount > `0`",
            ),
            "signoff": ChannelEvent("signoff", match={"run": "{{ run_id }}"}),
        },
        condition="orders & (payments | signoff)",
        timeout=timedelta(hours=6),
        soft_fail=True,
    )
