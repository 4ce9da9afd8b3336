"""Finds the partitions of subscribed topics, and the offset at which each subscription starts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from deferrable_ops.backoff import Backoff
from deferrable_ops.exceptions import KafkaRefused
from deferrable_ops.upstreams.kafka.client import Cluster, partitions_of
from deferrable_ops.upstreams.kafka.positions import (
    Bounds,
    Partition,
    first_offset,
    may_be_deleted,
    search_from,
)
from deferrable_ops.upstreams.kafka.subscriptions import Subscription, Subscriptions

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, TopicPartition

log = logging.getLogger(__name__)


class PartitionDiscovery:
    """Runs one asyncio task for each topic. So a partition without a leader delays only the subscriptions to its own
    topic.
    """

    def __init__(self, cluster: Cluster, consumer: AIOKafkaConsumer, subscriptions: Subscriptions) -> None:
        self._cluster = cluster
        self._consumer = consumer
        self._subscriptions = subscriptions
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wake_ups: dict[str, asyncio.Event] = {}

    def update(self) -> None:
        """Start an asyncio task for each new topic, and cancel the tasks of topics that have no subscriptions any more.

        Call this method after a subscription was added or removed.
        """
        names = set(self._subscriptions.topics) | set(self._subscriptions.pending)
        self._cluster.topics = names
        for name in names:
            if name not in self._tasks or self._tasks[name].done():
                self._wake_ups[name] = asyncio.Event()
                self._tasks[name] = asyncio.create_task(
                    self._discover(name), name=f"deferrable-ops kafka {name}"
                )
            elif name in self._subscriptions.pending:
                self._wake_ups[name].set()
        for name in set(self._tasks) - names:
            self._tasks.pop(name).cancel()

    async def close(self) -> None:
        """Stop all tasks."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _discover(self, name: str) -> None:
        from aiokafka.errors import KafkaError

        backoff, timings = Backoff(), self._cluster.timings
        while True:
            self._wake_ups[name].clear()
            try:
                numbers = await partitions_of(
                    self._consumer,
                    self._cluster.settings,
                    name,
                    missing_topic_timeout=timings.missing_topic_timeout,
                )
                await self._start_pending(name, numbers)
                await self._add_new_partitions(name, numbers)
            except KafkaRefused as refused:
                self._subscriptions.fail(self._subscriptions.for_topic(name), refused)
                return
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning("Cannot read the offsets of the topic %s; retrying: %r", name, error)
                await asyncio.sleep(backoff.failed())
                continue
            except Exception:
                log.exception("Cannot read the offsets of the topic %s; retrying", name)
                await asyncio.sleep(backoff.failed())
                continue
            backoff.succeeded()
            try:
                async with asyncio.timeout(timings.discovery_interval):
                    await self._wake_ups[name].wait()
            except TimeoutError:
                continue

    async def _start_pending(self, name: str, numbers: Collection[int]) -> None:
        """Find the start offsets of the subscriptions in ``pending``, and start these subscriptions."""
        pending = list(self._subscriptions.pending.get(name, ()))
        if not pending:
            return
        tps = _topic_partitions(name, numbers)
        searched: dict[int, dict[int, Bounds]] = {}
        for timestamp in {search_from(subscription.since) for subscription in pending}:
            searched[timestamp] = await bounds_of(self._consumer, tps, timestamp)
        now = time.time()
        for subscription in pending:
            # The subscription may have been removed during the search.
            if subscription in self._subscriptions.pending.get(name, ()):
                bounds = searched[search_from(subscription.since)]
                starts = {
                    number: (_start(subscription, number, one), one.end) for number, one in bounds.items()
                }
                self._subscriptions.start(subscription, starts)
                _warn_of_deleted(subscription, bounds, now)

    async def _add_new_partitions(self, name: str, numbers: Collection[int]) -> None:
        """Add the new partitions of a topic to its subscriptions. Every subscription of the topic reads a new partition
        from its first record.
        """
        topic = self._subscriptions.topics.get(name)
        new = set(numbers) - set(topic.partitions) if topic else set()
        if topic is None or not new:
            return
        bounds = await bounds_of(self._consumer, _topic_partitions(name, new))
        for number in new - set(topic.partitions):
            topic.partitions[number] = Partition(number, bounds[number].beginning)
        log.info(
            "The topic %s has %d new partitions, which are read from their first records", name, len(new)
        )
        self._subscriptions.changed()


async def bounds_of(
    consumer: AIOKafkaConsumer, tps: Sequence[TopicPartition], timestamp: int | None = None
) -> dict[int, Bounds]:
    """Return the first and the last offset of each given partition, by partition number. All partitions belong to one
    topic.

    :param timestamp: a time in milliseconds since the epoch; the result then also contains the offset and timestamp of
        each partition's first record at or after this time. If `timestamp` is None, no such record is searched for.
    """
    # Read the ends first, so that records that arrive during the search are after the ends.
    ends = await consumer.end_offsets(tps)
    beginnings = await consumer.beginning_offsets(tps)
    found = {} if timestamp is None else await consumer.offsets_for_times(dict.fromkeys(tps, timestamp))
    bounds = {}
    for tp in tps:
        first = found.get(tp)
        at = None if first is None else (first.offset, first.timestamp)
        bounds[tp.partition] = Bounds(beginnings[tp], ends[tp], at)
    return bounds


def _topic_partitions(name: str, numbers: Collection[int]) -> list[TopicPartition]:
    from aiokafka import TopicPartition

    return [TopicPartition(name, number) for number in sorted(numbers)]


def _start(subscription: Subscription, number: int, bounds: Bounds) -> int:
    """Return the offset at which a subscription starts to read a partition."""
    if subscription.offsets is not None:
        tp = f"{subscription.event.topic}/{number}"
        # A partition without a stored offset was added later, so start at its beginning.
        wanted = subscription.offsets.get(number, bounds.beginning)
        if bounds.beginning <= wanted <= bounds.end:
            return wanted
        subscription.warn(lost_records_warning(tp, wanted, bounds.beginning, "the time since="))
        if wanted < bounds.beginning:
            return bounds.beginning
    return first_offset(subscription.since, bounds)


def lost_records_warning(partition: str, offset: int, beginning: int, resumed_from: str) -> str:
    """Return the text of the warning for a subscription whose next offset no longer exists in a partition."""
    if offset < beginning:
        return (
            f"records of {partition} from offset {offset} to {beginning} were deleted before they were read; keep "
            "records longer (retention.ms, retention.bytes)"
        )
    return (
        f"{partition} no longer has offset {offset}, because the topic was recreated or lost its newest records; "
        f"reading continues from {resumed_from}"
    )


def _warn_of_deleted(subscription: Subscription, bounds: Mapping[int, Bounds], now: float) -> None:
    suspected = {
        number
        for number, found in bounds.items()
        if (subscription.offsets is None or number not in subscription.offsets)
        and may_be_deleted(subscription.since, found, now)
    }
    if suspected:
        first = min(suspected)
        others = f" and of {len(suspected) - 1} other partitions" if len(suspected) > 1 else ""
        subscription.warn(
            f"records of {subscription.event.topic}/{first}{others} that are newer than since= may be deleted already: "
            f"the first offset is now {bounds[first].beginning}; keep records longer (retention.ms, retention.bytes)"
        )
