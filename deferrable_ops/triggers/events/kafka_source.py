"""Reads records of Kafka topics and stores them in the inbox. Each waiting task reads a topic from its own offsets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import cast

from deferrable_ops.events import KafkaEvent
from deferrable_ops.inbox.events.events import Events, NewEvent, SourcePosition
from deferrable_ops.outcome import Outcome
from deferrable_ops.triggers.events.collector import EventCollector
from deferrable_ops.triggers.events.source_request import SourceRequest
from deferrable_ops.upstreams.kafka.consumers import Batch, use_kafka


async def read_kafka(request: SourceRequest, body: Callable[[], Awaitable[Outcome]]) -> Outcome:
    """Await `body` while the records of a Kafka topic are read for a waiting task.

    This function is a coroutine to save memory. A context manager that uses a generator would need 1 kB for each
    waiting task, and thousands of tasks may wait.

    :param request: the request of a wait to read a topic. All specifications of the request are KafkaEvents of this
        one topic.
    :raises ConfigurationError: if the extra ``kafka`` is not installed, or the connection is missing or has a wrong
        setting.
    """
    events, collector = request.inbox.events, request.collector
    wanted = cast("tuple[KafkaEvent, ...]", request.specifications)
    topic = wanted[0]
    offsets = None
    # A new wait has no offsets, so do not query them: thousands of waits may start at once, and each query needs a
    # database connection.
    if not request.is_new:
        offsets = await events.position_of(topic.source, request.wait_id)
    if offsets is not None:
        collector.resume_from(topic.source, offsets, await events.newest())
    async with use_kafka(topic.kafka_conn_id, partial(_store, events)) as kafka:
        with kafka.subscribe(
            request.wait_id, wanted, since=request.since, offsets=offsets, listener=collector
        ):
            return await body()


async def _store(events: Events, batch: Batch) -> None:
    new = [
        NewEvent(event.source, event.dedupe_key, event.payload, event.attributes, event.time)
        for event in batch.events
    ]
    positions = [
        SourcePosition(batch.source, wait_id, offsets) for wait_id, offsets in batch.resume_offsets.items()
    ]
    appended = await events.append_all(new, positions=positions)
    for event, commit, listeners in zip(batch.events, appended, batch.listeners, strict=True):
        for collector in cast("Iterable[EventCollector]", listeners):
            collector.add_record(commit, event)
