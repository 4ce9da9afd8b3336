"""An argument that a DAG omits has the same value in the trigger as in the operator."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pkgutil import resolve_name

import pytest
from airflow.sdk import DAG

from deferrable_ops.events import ChannelEvent
from deferrable_ops.operators.base import TriggererOperator
from deferrable_ops.operators.dataflow import (
    DataflowFlexTemplateOperator,
    DataflowJobSensor,
    DataflowStopJobOperator,
    DataflowTemplateOperator,
)
from deferrable_ops.operators.events import EventSensor, PublishEventOperator
from deferrable_ops.operators.high_availability import HighAvailabilityOperator
from deferrable_ops.operators.webhook import WebhookOperator, WebhookSensor

TASKS: list[Callable[[], TriggererOperator]] = [
    lambda: DataflowFlexTemplateOperator(
        task_id="task", region="europe-west1", body={"containerSpecGcsPath": "gs://a/b"}
    ),
    lambda: DataflowTemplateOperator(task_id="task", region="europe-west1", template="gs://a/b"),
    lambda: DataflowJobSensor(task_id="task", region="europe-west1", job_id="job"),
    lambda: DataflowStopJobOperator(task_id="task", region="europe-west1", job_id="job"),
    lambda: EventSensor(task_id="task", event=ChannelEvent("orders")),
    lambda: PublishEventOperator(task_id="task", channel="orders", payload={"id": 7}),
    lambda: HighAvailabilityOperator(task_id="task", python_callable="os.getcwd"),
    lambda: WebhookOperator(task_id="task", url="https://example.com/jobs"),
    lambda: WebhookSensor(task_id="task"),
]


@pytest.mark.parametrize("make", TASKS, ids=lambda make: make.__code__.co_names[0])
def test_trigger_has_the_operators_value_of_each_omitted_argument(
    make: Callable[[], TriggererOperator],
) -> None:
    with DAG("dag", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):
        task = make()
    args = task.start_trigger_args
    assert args is not None
    trigger = resolve_name(args.trigger_cls)(**args.trigger_kwargs)
    names = task.trigger_class.arguments
    if isinstance(getattr(trigger, "events", None), str):
        trigger.events = json.loads(trigger.events)
    assert {name: getattr(trigger, name) for name in names} == {name: getattr(task, name) for name in names}
