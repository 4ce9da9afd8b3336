"""Where subscriptions begin, and which partitions there are."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from deferrable_ops.exceptions import KafkaRefused
from deferrable_ops.upstreams.backoff import Backoff
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

_DISCOVERY_SECONDS = 5.0  # seconds; what the client knows, no request


class PartitionDiscovery:
    """Finds them for all topics, each in a task of its own: a partition without a leader holds up its topic only."""

    def __init__(self, cluster: Cluster, consumer: AIOKafkaConsumer, subscriptions: Subscriptions) -> None:
        self._cluster = cluster
        self._consumer = consumer
        self._subscriptions = subscriptions
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wake_ups: dict[str, asyncio.Event] = {}

    def update(self) -> None:
        """Look after each topic that is read. To be called whenever the subscriptions have changed."""
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
        """Look after no topic any more."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _discover(self, name: str) -> None:
        from aiokafka.errors import KafkaError

        backoff = Backoff()
        while True:
            self._wake_ups[name].clear()
            try:
                numbers = await partitions_of(self._consumer, self._cluster.settings, name)
                await self._start_pending(name, numbers)
                await self._add_new_partitions(name, numbers)
            except KafkaRefused as refused:
                self._subscriptions.fail(self._subscriptions.for_topic(name), refused)
                return
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning("The offsets of %s cannot be read now: %r", name, error)
                await asyncio.sleep(backoff.failed())
                continue
            except Exception:
                log.exception("The offsets of %s cannot be read; they are tried again", name)
                await asyncio.sleep(backoff.failed())
                continue
            backoff.succeeded()
            try:
                async with asyncio.timeout(_DISCOVERY_SECONDS):
                    await self._wake_ups[name].wait()
            except TimeoutError:
                continue

    async def _start_pending(self, name: str, numbers: Collection[int]) -> None:
        """Find where the subscriptions begin that have come."""
        pending = list(self._subscriptions.pending.get(name, ()))
        if not pending:
            return
        tps = _topic_partitions(name, numbers)
        searched: dict[int, dict[int, Bounds]] = {}
        for timestamp in {search_from(subscription.since) for subscription in pending}:
            searched[timestamp] = await bounds_of(self._consumer, tps, timestamp)
        now = time.time()
        for subscription in pending:
            if subscription in self._subscriptions.pending.get(name, ()):  # it has not left
                bounds = searched[search_from(subscription.since)]
                starts = {
                    number: (_start(subscription, number, one), one.end) for number, one in bounds.items()
                }
                self._subscriptions.start(subscription, starts)
                _warn_of_deleted(subscription, bounds, now)

    async def _add_new_partitions(self, name: str, numbers: Collection[int]) -> None:
        """Read partitions that are new from their beginning, for everyone."""
        topic = self._subscriptions.topics.get(name)
        new = set(numbers) - set(topic.partitions) if topic else set()
        if topic is None or not new:
            return
        bounds = await bounds_of(self._consumer, _topic_partitions(name, new))
        for number in new - set(topic.partitions):
            topic.partitions[number] = Partition(number, bounds[number].beginning)
        log.info("%s has %d new partitions", name, len(new))
        self._subscriptions.changed()


async def bounds_of(
    consumer: AIOKafkaConsumer, tps: Sequence[TopicPartition], timestamp: int | None = None
) -> dict[int, Bounds]:
    """Return by number what partitions of a topic hold.

    :param timestamp: milliseconds since the epoch, to search for; None: nothing is searched for.
    """
    # The ends first: what arrives while the search goes on lies behind them.
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
    """Return where a subscription begins in a partition."""
    if subscription.offsets is not None:
        tp = f"{subscription.event.topic}/{number}"
        wanted = subscription.offsets.get(
            number, bounds.beginning
        )  # a partition that came later is new to it
        if bounds.beginning <= wanted <= bounds.end:
            return wanted
        if wanted < bounds.beginning:
            subscription.warn(
                f"records of {tp} from offset {wanted} to {bounds.beginning} were deleted before they were read "
                "here; keep them longer (retention.ms, retention.bytes)"
            )
            return bounds.beginning
        subscription.warn(
            f"{tp} no longer has offset {wanted}, at which subscription was to go on: the topic was made again, or "
            "has lost its newest records; it is read again from since"
        )
    return first_offset(subscription.since, bounds)


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
            f"records of {subscription.event.topic}/{first}{others} that are not older than since may be deleted already: "
            f"it begins at offset {bounds[first].beginning}; keep them longer (retention.ms, retention.bytes)"
        )
