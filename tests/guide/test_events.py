"""Waiting for events, in ten examples. Events of a channel stand for those of Kafka and SQS, which work alike."""

from __future__ import annotations

import pytest
from airflow.sdk import DAG

from deferrable_ops import Failure, Skip, Success
from deferrable_ops.events import ChannelEvent, KafkaEvent, SqsEvent
from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.events import EventSensor, MultiEventSensor, event_gate
from deferrable_ops.testing import running


async def test_sensor_waits_for_one_event() -> None:
    """The event becomes the XCom: its payload, its time, its source and its attributes."""
    async with running(EventSensor(task_id="signed_off", event=ChannelEvent("signoff"))) as task:
        await task.publish("signoff", {"by": "ada"})
        outcome = await task.outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["payload"] == {"by": "ada"}
    assert set(outcome.value) >= {"payload", "time", "source", "attributes"}


async def test_match_selects_the_event() -> None:
    """`match` compares fields of the payload. Events that do not match stay available for other waits."""
    sensor = EventSensor(task_id="orders", event=ChannelEvent("loads", match={"table": "orders"}))
    async with running(sensor) as task:
        await task.publish("loads", {"table": "payments", "rows": 1})
        await task.publish("loads", {"table": "orders", "rows": 2})
        outcome = await task.outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["payload"]["rows"] == 2


async def test_several_events_are_needed_in_any_order() -> None:
    """Without a condition, all events must arrive."""
    sensor = MultiEventSensor(
        task_id="inputs", events={"orders": ChannelEvent("orders"), "payments": ChannelEvent("payments")}
    )
    async with running(sensor) as task:
        await task.publish("payments", 1)
        await task.publish("orders", 2)
        outcome = await task.outcome()
    assert isinstance(outcome, Success)
    assert {name: event["payload"] for name, event in outcome.value.items()} == {"orders": 2, "payments": 1}


async def test_condition_can_be_met_without_all_events() -> None:
    """``|``, ``&`` and ``at_least(n, ...)`` combine names. What did not arrive is None."""
    sensor = MultiEventSensor(
        task_id="inputs",
        events={name: ChannelEvent(name) for name in ("orders", "payments", "signoff")},
        condition="orders & (payments | signoff)",
    )
    async with running(sensor) as task:
        await task.publish("signoff", "ok")
        await task.publish("orders", "ok")
        outcome = await task.outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["payments"] is None


async def test_one_event_may_satisfy_several_names() -> None:
    """An event is not used up: each name, and each task, can match it."""
    sensor = MultiEventSensor(
        task_id="inputs",
        events={"any": ChannelEvent("loads"), "orders": ChannelEvent("loads", match={"table": "orders"})},
    )
    async with running(sensor) as task:
        await task.publish("loads", {"table": "orders"})
        outcome = await task.outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["any"]["payload"] == outcome.value["orders"]["payload"] == {"table": "orders"}


async def test_keep_all_collects_every_event_of_a_name() -> None:
    """`keep` is "first", "last" or "all"."""
    sensor = MultiEventSensor(
        task_id="inputs",
        events={"rows": ChannelEvent("rows"), "end": ChannelEvent("end")},
        keep="all",
    )
    async with running(sensor) as task:
        for number in (1, 2, 3):
            await task.publish("rows", number)
        await task.publish("end")
        outcome = await task.outcome()
    assert isinstance(outcome, Success)
    assert [event["payload"] for event in outcome.value["rows"]] == [1, 2, 3]


async def test_timeout_names_what_is_missing() -> None:
    """The reason of the failure lists the names that arrived and those that did not."""
    sensor = MultiEventSensor(
        task_id="inputs",
        events={"orders": ChannelEvent("orders"), "payments": ChannelEvent("payments")},
        timeout=1.0,
    )
    async with running(sensor) as task:
        await task.publish("orders")
        outcome = await task.outcome()
    assert isinstance(outcome, Failure)
    assert "payments" in outcome.reason


async def test_soft_fail_skips_the_task_at_the_timeout() -> None:
    """As in Airflow's own sensors."""
    sensor = EventSensor(task_id="late", event=ChannelEvent("signoff"), timeout=0.2, soft_fail=True)
    async with running(sensor) as task:
        assert isinstance(await task.outcome(), Skip)


def test_gate_waits_with_one_task_for_each_event() -> None:
    """The Grid then shows which event is missing. The sources can be mixed."""
    with DAG("load", schedule=None) as dag:
        event_gate(
            "inputs",
            events={
                "orders": KafkaEvent("orders"),
                "payments": SqsEvent(
                    "https://sqs.eu-west-1.amazonaws.com/123456789012/payments", dedicated=True
                ),
                "signoff": ChannelEvent("signoff"),
            },
        )
    assert set(dag.task_ids) == {"inputs.orders", "inputs.payments", "inputs.signoff", "inputs.join"}


def test_wrong_condition_is_an_error_when_the_dag_is_parsed() -> None:
    """The message names the unknown name."""
    with pytest.raises(InputError, match="paymnts"):
        MultiEventSensor(
            task_id="inputs",
            events={"orders": ChannelEvent("orders"), "payments": ChannelEvent("payments")},
            condition="orders & paymnts",
        )
