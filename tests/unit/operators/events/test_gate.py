"""A gate has one task per event; downstream tasks start when all events were received."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, TaskGroup
from airflow.serialization.serialized_objects import DagSerialization

from deferrable_ops.events import ChannelEvent
from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.events import EventGate, event_gate
from deferrable_ops.outcome import Failure, Success
from deferrable_ops.testing import running

EVENTS = {"orders": ChannelEvent("orders"), "payments": ChannelEvent("payments")}


@pytest.fixture
def dag() -> DAG:
    return DAG("dag", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC))


def downstream(dag: DAG) -> dict[str, set[str]]:
    """Return the downstream tasks of each task."""
    tasks: dict[str, Any] = DagSerialization.from_dict(DagSerialization.to_dict(dag)).task_dict
    return {task_id: set(task.downstream_task_ids) for task_id, task in tasks.items()}


def test_each_event_has_a_task_and_all_have_a_join_downstream(dag: DAG) -> None:
    with dag:
        with event_gate("inputs", events=EVENTS, since="day", timeout=timedelta(hours=6)) as gate:
            pass
        EmptyOperator(task_id="extract") >> gate >> EmptyOperator(task_id="transform")
    assert downstream(dag) == {
        "extract": {"inputs.orders", "inputs.payments"},
        "inputs.orders": {"inputs.join"},
        "inputs.payments": {"inputs.join"},
        "inputs.join": {"transform"},
        "transform": set(),
    }


def test_gate_needs_no_with_statement(dag: DAG) -> None:
    with dag:
        event_gate("inputs", events=EVENTS) >> EmptyOperator(task_id="transform")
    assert downstream(dag)["inputs.join"] == {"transform"}


def test_tasks_inside_the_gate_are_downstream_of_the_join(dag: DAG) -> None:
    with dag:
        with event_gate("inputs", events=EVENTS) as gate:
            EmptyOperator(task_id="merge") >> EmptyOperator(task_id="check")
        gate >> EmptyOperator(task_id="transform")
    after = downstream(dag)
    assert after["inputs.join"] == {"inputs.merge"}
    assert after["inputs.merge"] == {"inputs.check"}
    assert after["inputs.check"] == {"transform"}


def test_gate_can_be_inside_another_group(dag: DAG) -> None:
    with dag, TaskGroup("morning"):
        gate = event_gate("inputs", events=EVENTS)
        gate >> EmptyOperator(task_id="transform")
    assert isinstance(gate, EventGate)
    assert downstream(dag)["morning.inputs.join"] == {"morning.transform"}


def test_waits_and_join_need_no_worker(dag: DAG) -> None:
    with dag:
        gate = event_gate("inputs", events=EVENTS, soft_fail=True)
    assert [wait.worker_start_reason for wait in gate.waits.values()] == [None, None]
    assert gate.join.inherits_from_empty_operator
    assert gate.waits["orders"].soft_fail


async def test_late_event_fails_only_its_task_and_is_named(dag: DAG) -> None:
    with dag:
        gate = event_gate("inputs", events=EVENTS, timeout=0.4)
    async with running(gate.waits["orders"]) as orders:
        await orders.publish("orders", {"rows": 7})
        outcome = await orders.outcome()
        assert isinstance(outcome, Success)
        assert outcome.value["payload"] == {"rows": 7}
    async with running(gate.waits["payments"]) as payments:
        assert await payments.outcome() == Failure(
            "the deadline passed; missing: payments; received: nothing"
        )


@pytest.mark.parametrize(
    "events, message",
    [({}, "events= is empty"), ({"join": ChannelEvent("x")}, "events= has the name 'join'"), ([], "a dict")],
)
def test_gate_refuses_invalid_events(dag: DAG, events: Any, message: str) -> None:
    with dag, pytest.raises(InputError, match=message):
        event_gate("inputs", events=events)
