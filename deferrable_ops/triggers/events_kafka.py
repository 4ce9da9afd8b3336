"""Kafka's records come into the inbox for as long as a wait needs them, from where it has read them up to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

from deferrable_ops.events import KafkaEvent
from deferrable_ops.inbox.events import Events, NewEvent, Reached
from deferrable_ops.triggers.events_need import Need
from deferrable_ops.upstreams.kafka import Batch, use_kafka


@asynccontextmanager
async def read_kafka(need: Need) -> AsyncIterator[None]:
    """Read what one event of a wait needs, while the block lasts.

    :raises ConfigurationError: the extra ``kafka`` or the connection is missing, or a setting of it is wrong.
    """
    event, events = cast("KafkaEvent", need.specification), need.inbox.events
    offsets = await events.reached(event.source, need.key)
    async with use_kafka(event.kafka_conn_id, partial(_store, events)) as kafka:
        with kafka.read(need.key, event, since=need.since, offsets=offsets, warn=need.warn, fail=need.fail):
            yield


async def _store(events: Events, batch: Batch) -> None:
    new = [
        NewEvent(event.source, event.dedupe_key, event.payload, event.attributes, event.time)
        for event in batch.events
    ]
    reached = [Reached(batch.source, key, offsets) for key, offsets in batch.reached.items()]
    await events.append_all(new, reached=reached)
