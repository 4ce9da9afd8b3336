"""What the operators add to a serialized DAG, which each trigger that the scheduler starts carries."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Asset
from airflow.serialization.serialized_objects import DagSerialization

from deferrable_ops.events import ChannelEvent
from deferrable_ops.operators.events import EventSensor
from deferrable_ops.operators.high_availability import HighAvailabilityOperator
from deferrable_ops.operators.supervisor import Supervisor
from deferrable_ops.operators.webhook import WebhookOperator
from deferrable_ops.triggers.events.arguments import parse_events

START = datetime(2026, 1, 1, tzinfo=UTC)
URL = "https://jobs.example.com/start"


def webhooks() -> None:
    for number in range(50):
        WebhookOperator(task_id=f"w{number}", url=URL, json={"callback": "${callback_url}"})


def events() -> None:
    for number in range(400):
        EventSensor(task_id=f"e{number}", event=ChannelEvent("orders", match={"id": str(number)}))


def supervisor() -> None:
    Supervisor(cfg={"program": {"one": {"command": "sleep 100"}}, "working_dir": "/srv/programs"})


def checks() -> None:
    for number in range(10):
        HighAvailabilityOperator(task_id=f"h{number}", python_callable="package.check")


# Each was 35.5, 293.2, 61 and 419 kB when a task contained all arguments, and the DAG's params. At most half of that is
# allowed.
@pytest.mark.parametrize(
    ("make", "most"), [(webhooks, 17_500), (events, 136_000), (supervisor, 11_900), (checks, 44_000)]
)
def test_tasks_add_few_bytes_to_a_serialized_dag(make: Callable[[], None], most: int) -> None:
    with DAG("d", schedule=None, start_date=START) as dag:
        make()
    with DAG("d", schedule=None, start_date=START) as empty:
        tasks = {task.task_id: EmptyOperator(task_id=task.task_id) for task in dag.tasks}
    for task in dag.tasks:
        for downstream in sorted(task.downstream_task_ids):
            tasks[task.task_id] >> tasks[downstream]
    assert _bytes(dag) - _bytes(empty) <= most


def test_events_without_templates_are_one_string() -> None:
    with DAG("d", schedule=None, start_date=START):
        plain = EventSensor(task_id="e", event=ChannelEvent("orders", match={"id": "7"}))
        rendered = EventSensor(task_id="r", event=ChannelEvent("orders", match={"day": "{{ ds }}"}))
    assert plain.start_trigger_args is not None
    assert rendered.start_trigger_args is not None
    events = plain.start_trigger_args.trigger_kwargs["events"]
    assert events == '{"e":{"type":"channel","name":"orders","match":{"id":"7"}}}'
    assert parse_events(events) == {"e": ChannelEvent("orders", match={"id": "7"})}
    assert isinstance(rendered.start_trigger_args.trigger_kwargs["events"], dict)


def test_serialized_task_has_no_argument_with_its_default() -> None:
    with DAG("d", schedule=None, start_date=START, params={"day": 1}):
        task = WebhookOperator(
            task_id="w", url=URL, method="PUT", launch_timeout=300, timeout=60, params={"n": 2}
        )
    assert task.start_trigger_args is not None
    assert task.start_trigger_args.trigger_kwargs == {"url": URL, "method": "PUT", "timeout": 60.0}
    assert dict(task.params) == {"n": 2}


def test_argument_that_is_none_against_its_default_is_kept() -> None:
    from deferrable_ops.operators.dataflow import DataflowJobSensor

    with DAG("d", schedule=None, start_date=START):
        task = DataflowJobSensor(task_id="j", project_id="p", region="r", job_id="1", log_messages=None)
    assert task.start_trigger_args is not None
    assert task.start_trigger_args.trigger_kwargs == {
        "project_id": "p",
        "region": "r",
        "job_id": "1",
        "log_messages": None,
    }


def test_template_fields_are_those_that_rendering_changes() -> None:
    with DAG("d", schedule=None, start_date=START):
        plain = WebhookOperator(task_id="plain", url=URL, json={"a": [1, None, "b"]})
        templated = WebhookOperator(task_id="templated", url=URL, json={"a": ["{{ ds }}"]})
        on_worker = WebhookOperator(task_id="on_worker", url=URL, pool="narrow")
        event = EventSensor(task_id="event", event=ChannelEvent("orders", match={"day": "{{ ds }}"}))
    assert plain.template_fields == ()
    assert templated.template_fields == ("json",)
    assert on_worker.template_fields == ("url",)
    assert (event.template_fields, event.template_fields_renderers) == (("events",), {"events": "json"})
    assert WebhookOperator.template_fields[:3] == ("url", "path", "headers")


def test_output_of_another_task_is_a_template_field() -> None:
    with DAG("d", schedule=None, start_date=START):
        first = WebhookOperator(task_id="first", url=URL, outlets=[Asset("done")])
        second = WebhookOperator(task_id="second", url=URL, json=first.output)
        third = WebhookOperator(task_id="third", url=URL)
        third.data = first.output
    assert (second.template_fields, third.template_fields) == (("url", "json"), ("url", "data"))
    assert first.downstream_task_ids == {"second", "third"}


@pytest.mark.parametrize("text", ["{{ ds }}", "{% if ds %}b{% endif %}", "{# note #}", "end\n", "a\r\nb"])
def test_text_that_rendering_changes_is_a_template_field(text: str) -> None:
    with DAG("d", schedule=None, start_date=START):
        assert WebhookOperator(task_id="w", url=URL, data=text).template_fields == ("data",)


def _bytes(dag: DAG) -> int:
    return len(json.dumps(DagSerialization.to_dict(dag)).encode())
