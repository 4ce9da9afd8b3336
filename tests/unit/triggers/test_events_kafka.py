"""What Kafka finds for a wait is in the inbox, together with where the wait goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any

import pytest
from unit.triggers.dataflow_support import Runs, eventually
from unit.triggers.events_support import LONG_AGO, payloads, value_of, waiting_for_events

from deferrable_ops.events import KafkaEvent
from deferrable_ops.events.event import kafka_event
from deferrable_ops.exceptions import ConfigurationError
from deferrable_ops.outcome import Failure
from deferrable_ops.triggers import events_kafka
from deferrable_ops.upstreams.kafka import Batch, Store

ORDERS = KafkaEvent("orders", match={"db": "a"}, kafka_conn_id="logs")
PAID = KafkaEvent("orders", match={"db": "b"}, kafka_conn_id="logs")


class FakeKafka:
    """A cluster that finds what it is told to."""

    def __init__(self) -> None:
        self.conn_ids: list[str] = []
        self.store: Store
        self.read_for: dict[str, dict[str, Any]] = {}
        self.refuses: Exception | None = None

    @asynccontextmanager
    async def use(self, kafka_conn_id: str, store: Store) -> AsyncIterator[FakeKafka]:
        if self.refuses is not None:
            raise self.refuses
        self.conn_ids.append(kafka_conn_id)
        self.store = store
        yield self

    @contextmanager
    def read(self, key: str, event: KafkaEvent, **arguments: Any) -> Iterator[None]:
        self.read_for[key] = {"event": event, **arguments}
        try:
            yield
        finally:
            del self.read_for[key]

    async def find(self, offset: int, payload: bytes, *keys: str, too_large: bool = False) -> None:
        """Find a record for the readings that go by these keys."""
        event = kafka_event(
            ORDERS.source,
            topic="orders",
            partition=0,
            offset=offset,
            timestamp=1_700_000_000_000,
            key=b"k",
            value=payload,
            headers=[],
            received_at=0.0,
        )
        event = event.without_payload(len(payload)) if too_large else event
        await self.store(Batch(ORDERS.source, (event,), {key: {"0": offset + 1} for key in keys}))


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> FakeKafka:
    kafka = FakeKafka()
    monkeypatch.setattr(events_kafka, "use_kafka", kafka.use)
    return kafka


async def test_record_is_in_the_inbox_with_where_the_wait_goes_on(runs: Runs, kafka: FakeKafka) -> None:
    run = runs.start(waiting_for_events({"orders": ORDERS, "paid": PAID}, since=LONG_AGO))
    wait_id = run.attempt.wait_id
    await eventually(lambda: len(kafka.read_for) == 2, "both to be read for")
    first = kafka.read_for[f"{wait_id}/orders"]
    assert (first["event"], first["offsets"]) == (ORDERS, None)
    assert first["since"] == datetime.fromisoformat(LONG_AGO).timestamp()

    await kafka.find(4, b'{"db": "a", "n": 1}', f"{wait_id}/orders")
    await run.kill_process()
    assert kafka.read_for == {}
    again = runs.start(waiting_for_events({"orders": ORDERS, "paid": PAID}, since=LONG_AGO), run.attempt)
    await eventually(lambda: len(kafka.read_for) == 2, "both to be read for")
    assert kafka.read_for[f"{wait_id}/orders"]["offsets"] == {"0": 5}
    assert kafka.read_for[f"{wait_id}/paid"]["offsets"] is None

    await kafka.find(4, b'{"db": "a", "n": 1}', f"{wait_id}/orders")
    await kafka.find(9, b'{"db": "b", "n": 2}', f"{wait_id}/paid")
    value = await value_of(again)
    assert payloads(value) == {"orders": {"db": "a", "n": 1}, "paid": {"db": "b", "n": 2}}
    assert value["paid"]["attributes"]["metadata"]["offset"] == 9
    assert value["paid"]["time"] == "2023-11-14T22:13:20+00:00"
    assert set(kafka.conn_ids) == {"logs"}
    assert kafka.read_for == {}


async def test_record_without_its_payload_is_taken_by_its_key(runs: Runs, kafka: FakeKafka) -> None:
    by_key = KafkaEvent("orders", match={"key": "k"}, kafka_conn_id="logs")
    run = runs.start(waiting_for_events({"orders": by_key}, since=LONG_AGO))
    await eventually(lambda: kafka.read_for, "it to be read for")
    await kafka.find(4, b"x" * 300, *kafka.read_for, too_large=True)
    (came,) = (await value_of(run)).values()
    assert came["payload"] is None
    assert came["attributes"]["metadata"]["dropped_payload_bytes"] == 300


async def test_kafka_can_warn_in_the_log_and_end_the_wait(
    runs: Runs, kafka: FakeKafka, caplog: pytest.LogCaptureFixture
) -> None:
    run = runs.start(waiting_for_events({"orders": ORDERS}, since=LONG_AGO))
    await eventually(lambda: kafka.read_for, "it to be read for")
    (reading,) = kafka.read_for.values()
    reading["told"].warn("records were deleted")
    await eventually(lambda: "records were deleted" in caplog.text, "the warning")
    reading["told"].fail("there is no topic orders")
    assert await run.outcome() == Failure("there is no topic orders")


async def test_connection_that_cannot_be_used_fails_the_wait_with_the_reason(
    runs: Runs, kafka: FakeKafka
) -> None:
    kafka.refuses = ConfigurationError("there is no connection 'logs'")
    run = runs.start(waiting_for_events({"orders": ORDERS}, since=LONG_AGO))
    async with asyncio.timeout(20):
        assert await run.outcome() == Failure("there is no connection 'logs'")
