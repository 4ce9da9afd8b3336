"""What tests/airflow/test_events_*.py run. The channel's name comes with the run's conf."""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, task

from deferrable_ops.events import ChannelEvent
from deferrable_ops.operators.events import (
    EventSensor,
    MultiEventSensor,
    PublishEventOperator,
    event_gate,
)

CHANNEL = "{{ dag_run.conf['channel'] }}"
TIMEOUT = 15


def event(table: str) -> ChannelEvent:
    """Return the event that says that a table is there."""
    return ChannelEvent(CHANNEL, match={"table": table})


ORDERS, PAYMENTS, STOCK = (event(table) for table in ("orders", "payments", "stock"))
TABLES = {"orders": ORDERS, "payments": PAYMENTS, "stock": STOCK}
# What came before the run was cleared counts, too: the run starts anew, and its interval does not.
SINCE = "{{ data_interval_start }}"

with DAG("events_one", schedule=None):
    EventSensor(task_id="wait", event=ChannelEvent(CHANNEL, match="table == 'orders' && rows > `10`"))

with DAG("events_several", schedule=None):
    MultiEventSensor(task_id="wait", events=TABLES, condition="orders & (payments | stock)", since=SINCE)

with DAG("events_all_of_them", schedule=None):
    MultiEventSensor(
        task_id="wait",
        events={"part": event("part"), "end": event("end")},
        keep="all",
        since=SINCE,
        timeout=600,
    )

with DAG("events_timeout", schedule=None):
    MultiEventSensor(task_id="wait", events=TABLES, since=SINCE, timeout=TIMEOUT)

for name, arguments in {"events_gate": {}, "events_gate_soft": {"soft_fail": True}}.items():
    with DAG(name, schedule=None):
        with event_gate("inputs", events=TABLES, since=SINCE, timeout=TIMEOUT, **arguments) as gate:
            EmptyOperator(task_id="merge")

        gate >> EmptyOperator(task_id="transform")

with DAG("events_publisher", schedule=None):
    PublishEventOperator(
        task_id="publish", channel=CHANNEL, payload={"table": "orders", "rows": 11, "by": ["{{ run_id }}"]}
    )

with DAG("events_mapped", schedule=None):
    waits = EventSensor.partial(task_id="wait", since=SINCE).expand(event=[ORDERS, PAYMENTS])

    @task
    def tables(came: Any) -> list[str]:
        return [one["payload"]["table"] for one in came]

    tables(waits.output)
