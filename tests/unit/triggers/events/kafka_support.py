"""A fake Kafka whose records are set by a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from deferrable_ops.events import KafkaEvent
from deferrable_ops.events.event import Event, kafka_event
from deferrable_ops.upstreams.kafka.consumers import Batch, Store

ORDERS = KafkaEvent("orders", match={"db": "a"}, kafka_conn_id="logs")
PAID = KafkaEvent("orders", match={"db": "b"}, kafka_conn_id="logs")


class FakeKafka:
    """A fake cluster; :meth:`find` delivers a record."""

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
    def subscribe(self, key: str, events: Sequence[KafkaEvent], **arguments: Any) -> Iterator[None]:
        self.read_for[key] = {"events": events, **arguments}
        try:
            yield
        finally:
            del self.read_for[key]

    async def find(self, offset: int, payload: bytes, *keys: str, too_large: bool = False) -> None:
        """Deliver a record to the subscriptions with these keys."""
        event = order_event(offset, payload)
        event = event.without_payload(len(payload)) if too_large else event
        listeners = tuple(self.read_for[key]["listener"] for key in keys)
        await self.store(
            Batch(ORDERS.source, (event,), {key: {"0": offset + 1} for key in keys}, (listeners,))
        )


def order_event(offset: int, payload: bytes) -> Event:
    """Return the event of a record of the topic ``orders``."""
    return kafka_event(
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
