"""A wait that the scheduler deferred: Airflow's triggerer code creates it from a serialized DAG."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from airflow.executors.workloads.task import TaskInstanceDTO
from airflow.jobs.triggerer_job_runner import TriggerRunner
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import BaseSerialization, DagSerialization
from airflow.triggers.base import TaskFailedEvent, TaskSuccessEvent, TriggerEvent
from unit.triggers.events.support import post
from unit.triggers.support import AirflowComms

from deferrable_ops.events import ChannelEvent
from deferrable_ops.inbox import Inbox
from deferrable_ops.operators.events import EventSensor, MultiEventSensor
from deferrable_ops.testing import memory_inbox
from deferrable_ops.triggers.events.trigger import EventsTrigger
from deferrable_ops.triggers.lifecycle import background

RUN_ID = "scheduled__2026-11-20T00:00:00+00:00"
INTERVAL = datetime(2026, 11, 20, tzinfo=UTC), datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture
async def inbox(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Inbox]:
    monkeypatch.setattr(background, "start", lambda: None)
    async with memory_inbox() as inbox:
        yield inbox


def in_triggerer(dag: DAG, task_id: str, started: float, **of_run: Any) -> EventsTrigger:
    """Return the trigger of a task as created by Airflow's triggerer, with rendered templates."""
    encoded = DagSerialization.to_dict(dag)
    start = DagSerialization.from_dict(encoded).get_task(task_id).start_trigger_args
    ti = TaskInstanceDTO(
        id=uuid4(),
        dag_version_id=uuid4(),
        task_id=task_id,
        dag_id="dag",
        run_id=RUN_ID,
        try_number=1,
        map_index=-1,
        pool_slots=1,
        queue="default",
        priority_weight=1,
    )
    dag_run = {
        "dag_id": "dag",
        "run_id": RUN_ID,
        "logical_date": INTERVAL[0],
        "data_interval_start": INTERVAL[0],
        "data_interval_end": INTERVAL[1],
        "run_after": INTERVAL[1],
        "start_date": datetime.fromtimestamp(started, UTC),
        "run_type": "scheduled",
        "state": "running",
        "end_date": None,
        "partition_key": None,
        "consumed_asset_events": [],
        **of_run,
    }
    trigger = EventsTrigger(**BaseSerialization.deserialize(start.trigger_kwargs))
    runtime = TriggerRunner.create_runtime_ti(ti, encoded, dag_run)
    context = runtime.get_template_context()
    trigger.task_instance = runtime  # type: ignore[assignment]
    trigger.timeout_after = datetime.now(UTC) + start.timeout  # type: ignore[attr-defined]
    trigger.render_template_fields(context)
    return trigger


async def end_of(trigger: EventsTrigger) -> TriggerEvent:
    events = [event async for event in trigger.run()]
    assert len(events) == 1
    return events[0]


@pytest.mark.parametrize("since", [None, "{{ dag_run.start_date }}"])
async def test_events_count_from_the_runs_start_in_the_triggerer(
    inbox: Inbox, airflow_comms: AirflowComms, since: str | None
) -> None:
    now = time.time()
    await post(inbox, "orders", {"day": "2026-11-20", "when": "before the run"}, at=now - 70)
    await post(inbox, "orders", {"day": "2026-11-20", "when": "since the run"}, at=now - 50)
    with DAG("dag", schedule="@daily", start_date=INTERVAL[0]) as dag:
        event = ChannelEvent("orders", match={"day": "{{ ds }}"})
        EventSensor(task_id="orders", event=event, since=since)
    event_of_end = await end_of(in_triggerer(dag, "orders", started=now - 60))
    assert isinstance(event_of_end, TaskSuccessEvent)
    assert airflow_comms.xcoms["return_value"]["payload"]["when"] == "since the run"


async def test_templates_of_several_events_are_rendered(inbox: Inbox, airflow_comms: AirflowComms) -> None:
    await post(inbox, "orders-eu", {"run": [RUN_ID]}, at=INTERVAL[0].timestamp())
    await post(inbox, "signoff", at=INTERVAL[0].timestamp() + 1)
    with DAG("dag", schedule="@daily", start_date=INTERVAL[0], params={"region": "eu"}) as dag:
        events = {
            "orders": ChannelEvent("orders-{{ params.region }}", match="contains(run, '{{ run_id }}')"),
            "signoff": ChannelEvent("signoff"),
        }
        MultiEventSensor(task_id="ready", events=events, since="{{ data_interval_start }}")
    assert isinstance(await end_of(in_triggerer(dag, "ready", time.time())), TaskSuccessEvent)
    assert set(airflow_comms.xcoms["return_value"]) == {"orders", "signoff"}


async def test_template_that_renders_to_an_empty_text_fails_with_the_fix(
    inbox: Inbox, airflow_comms: AirflowComms, capsys: pytest.CaptureFixture[str]
) -> None:
    with DAG("dag", schedule=None, start_date=INTERVAL[0]) as dag:
        EventSensor(task_id="orders", event=ChannelEvent("orders"), since="{{ dag_run.data_interval_start }}")
    trigger = in_triggerer(dag, "orders", time.time(), logical_date=None, data_interval_start=None)
    assert isinstance(await end_of(trigger), TaskFailedEvent)
    assert "leave since= out to accept events since the DAG run's start" in capsys.readouterr().out


async def test_deadline_is_that_of_the_next_data_interval_and_before_airflows_own(
    inbox: Inbox, airflow_comms: AirflowComms
) -> None:
    now = datetime.now(UTC)
    with DAG("dag", schedule=timedelta(hours=1), start_date=INTERVAL[0]) as dag:
        late = MultiEventSensor(
            task_id="late", events={"orders": ChannelEvent("orders")}, until_next_interval=True, timeout=7200
        )
        short = EventSensor(
            task_id="short", event=ChannelEvent("orders"), until_next_interval=True, timeout=60
        )
    assert late.start_from_trigger
    assert short.start_from_trigger
    interval = {"data_interval_start": now - timedelta(hours=1), "data_interval_end": now}
    trigger = in_triggerer(dag, "late", time.time(), **interval)
    assert trigger.new_wait(trigger.identify()).timeout == pytest.approx(3600, abs=5)
    trigger = in_triggerer(dag, "short", time.time(), **interval)
    assert trigger.new_wait(trigger.identify()).timeout == pytest.approx(55, abs=1)


async def test_cron_timeout_is_long_before_airflows_own_deadline(
    inbox: Inbox, airflow_comms: AirflowComms
) -> None:
    with DAG("dag", schedule=None, start_date=INTERVAL[0]) as dag:
        EventSensor(task_id="orders", event=ChannelEvent("orders"), timeout="* * * * *")
    trigger = in_triggerer(dag, "orders", time.time())
    assert 0 <= trigger.new_wait(trigger.identify()).timeout <= 60
    assert trigger.timeout_after > datetime.now(UTC) + timedelta(days=3_000)  # type: ignore[attr-defined]
