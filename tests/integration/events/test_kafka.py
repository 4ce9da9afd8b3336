"""Waits for records of a real Apache Kafka, with the triggers run like in a triggerer."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from integration.inboxes import open_inbox
from unit.triggers.events.support import payloads, value_of, waiting_for_events
from unit.triggers.support import Run, Runs, eventually

from deferrable_ops.events import KafkaEvent
from deferrable_ops.inbox.events.events import AppendResult
from deferrable_ops.operators.events import EventSensor
from deferrable_ops.outcome import Failure, Success
from deferrable_ops.testing import running
from deferrable_ops.triggers.events.trigger import EventsTrigger
from real_kafka import RealKafka

_numbers = itertools.count(1)
MINUTE = 60.0


@pytest.fixture
def topic(kafka_server: RealKafka, monkeypatch: pytest.MonkeyPatch) -> str:
    """A topic of two partitions, on the cluster of the connection kafka_default."""
    connection = {"conn_type": "kafka", "extra": {"bootstrap.servers": kafka_server.servers}}
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps(connection))
    name = f"etl-{next(_numbers)}"
    kafka_server.create_topic(name, 2)
    return name


@pytest.fixture
def appended(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> list[AppendResult]:
    """Records the result of each append."""
    seen: list[AppendResult] = []
    append_all = runs.inbox.events.append_all

    async def noted(*arguments: Any, **named: Any) -> list[AppendResult]:
        became = await append_all(*arguments, **named)
        seen.extend(became)
        return became

    monkeypatch.setattr(runs.inbox.events, "append_all", noted)
    return seen


def ago(seconds: float) -> str:
    return datetime.fromtimestamp(time.time() - seconds, UTC).isoformat()


def produce(server: RealKafka, topic: str, *payloads: Any, age: float = 0, **arguments: Any) -> None:
    values = [json.dumps(payload).encode() for payload in payloads]
    server.produce(topic, *values, timestamp=int((time.time() - age) * 1_000), **arguments)


def both(topic: str, **arguments: Any) -> EventsTrigger:
    """Return a wait for two tables of one topic."""
    events = {table: KafkaEvent(topic, match={"table": table}) for table in ("orders", "payments")}
    return waiting_for_events(dict(events), since=ago(10 * MINUTE), keep="all", **arguments)


async def stored(run: Run, topic: str, is_there: Callable[[Any], bool]) -> None:
    """Wait until the read offsets of a wait are stored."""
    async with asyncio.timeout(30):
        source = KafkaEvent(topic).source
        while not is_there(await run.inbox.events.position_of(source, run.attempt.wait_id)):
            assert not run.task.done(), await run.outcome()
            await asyncio.sleep(0.01)


async def test_sensor_finds_an_earlier_record(kafka_server: RealKafka, topic: str) -> None:
    produce(kafka_server, topic, {"table": "orders", "n": 1}, age=20 * MINUTE)
    produce(kafka_server, topic, {"table": "payments"}, {"table": "orders", "n": 2}, age=5 * MINUTE, key=b"k")
    sensor = EventSensor(
        task_id="wait", event=KafkaEvent(topic, match={"table": "orders"}), since=ago(10 * MINUTE)
    )
    async with running(sensor) as task, asyncio.timeout(30):
        outcome = await task.outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["payload"] == {"table": "orders", "n": 2}
    assert outcome.value["source"] == f"kafka:kafka_default/{topic}"
    assert outcome.value["attributes"]["key"] == "k"
    assert outcome.value["attributes"]["metadata"]["offset"] == 2


async def test_wait_receives_earlier_and_live_records(
    kafka_server: RealKafka, topic: str, runs: Runs
) -> None:
    for n in range(3):
        produce(kafka_server, topic, {"table": "orders", "n": n}, age=5 * MINUTE, partition=n % 2)
    run = runs.start(both(topic))
    await stored(run, topic, lambda offsets: offsets == {"0": 2, "1": 1})
    produce(kafka_server, topic, {"table": "orders", "n": 3}, {"table": "payments", "n": 4}, partition=1)
    value = payloads(await value_of(run))
    assert sorted(one["n"] for one in value["orders"]) == [0, 1, 2, 3]
    assert value["payments"] == [{"table": "payments", "n": 4}]


async def test_restart_resumes_at_the_stored_offsets(
    kafka_server: RealKafka, topic: str, runs: Runs, appended: list[AppendResult]
) -> None:
    trigger = both(topic)
    produce(kafka_server, topic, {"table": "orders", "n": 1}, {"table": "orders", "n": 2}, age=5 * MINUTE)
    run = runs.start(trigger)
    await stored(run, topic, lambda offsets: offsets == {"0": 2, "1": 0})
    await run.kill_process()
    produce(kafka_server, topic, {"table": "orders", "n": 3})  # while no wait reads
    again = runs.start(trigger, run.attempt)
    await stored(again, topic, lambda offsets: offsets["0"] == 3)
    produce(kafka_server, topic, {"table": "payments", "n": 4})
    value = payloads(await value_of(again))
    assert [one["n"] for one in value["orders"]] == [1, 2, 3]
    assert [one.is_duplicate for one in appended] == [False] * 4, "a record was read again"


async def test_two_triggerers_on_one_wait_have_the_same_outcome(
    kafka_server: RealKafka, topic: str, runs: Runs, tmp_path: Path
) -> None:
    trigger = both(topic)
    for n in range(100):
        produce(kafka_server, topic, {"table": "orders", "n": n}, age=5 * MINUTE)
    one = runs.start(trigger)

    async def other_triggerer() -> Any:
        inbox = await open_inbox(tmp_path)
        others = Runs(inbox)
        try:
            return await value_of(others.start(trigger, one.attempt))
        finally:
            await others.stop()
            await inbox.close()

    other = asyncio.create_task(asyncio.to_thread(asyncio.run, other_triggerer()))
    await stored(one, topic, lambda offsets: offsets is not None and offsets["0"] == 100)
    produce(kafka_server, topic, {"table": "payments", "n": 100})
    value = await value_of(one)
    assert value == await other
    assert [one["n"] for one in payloads(value)["orders"]] == list(range(100))


async def test_too_large_record_is_stored_without_its_payload(
    kafka_server: RealKafka, topic: str, runs: Runs
) -> None:
    large = {"table": "orders", "text": "x" * 300_000}
    produce(kafka_server, topic, large, key=b"k")
    events = {
        "by_payload": KafkaEvent(topic, match={"table": "orders"}),
        "by_key": KafkaEvent(topic, match="key == 'k'"),
    }
    run = runs.start(waiting_for_events(dict(events), since=ago(MINUTE), condition="by_key"))
    came = (await value_of(run))["by_key"]
    assert came["payload"] is None
    assert came["attributes"]["metadata"]["dropped_payload_bytes"] > 300_000


async def test_wait_whose_match_needs_a_dropped_payload_gets_a_warning(
    kafka_server: RealKafka, topic: str, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    run = runs.start(both(topic))
    produce(kafka_server, topic, {"table": "orders", "text": "x" * 300_000}, {"table": "orders"})
    produce(kafka_server, topic, {"table": "payments"})
    assert payloads(await value_of(run))["orders"] == [{"table": "orders"}]
    await eventually(lambda: "its payload is dropped" in caplog.text, "the warning")


async def test_missing_topic_fails_the_wait(topic: str, runs: Runs) -> None:
    run = runs.start(waiting_for_events({"orders": KafkaEvent("nowhere")}))
    async with asyncio.timeout(60):
        await run.task
    outcome = await run.outcome()
    assert isinstance(outcome, Failure)
    assert "nowhere" in outcome.reason


async def test_missing_connection_fails_the_wait(runs: Runs) -> None:
    outcome = await runs.start(
        waiting_for_events({"orders": KafkaEvent("etl", kafka_conn_id="no_such")})
    ).outcome()
    assert isinstance(outcome, Failure)
    assert "no_such" in outcome.reason
