"""The subscriptions of waiting tasks to the topics of a Kafka cluster.

The consumer of new records and the consumer of older records use these subscriptions, in one thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from deferrable_ops import settings
from deferrable_ops.backoff import FIRST_PAUSE, Backoff
from deferrable_ops.events import KafkaEvent
from deferrable_ops.events.event import Event, kafka_event
from deferrable_ops.exceptions import KafkaRefused
from deferrable_ops.upstreams.kafka.positions import BaseSubscription, Offsets, Partition, Topic

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """Events and offsets that the inbox stores in one transaction.

    :param source: the name of the topic in the inbox, as in :attr:`~deferrable_ops.events.KafkaEvent.source`.
    :param events: those events of this topic that match a subscription, in the order of their offsets. The
        tuple may be empty.
    :param resume_offsets: the offsets from which each subscription must continue after a restart, by the key of the
        subscription. These offsets are only correct if all events of the batch are stored.
    :param listeners: for each event, the listeners of the subscriptions whose specifications match the event. The event
        is passed to these listeners after the batch was stored.
    """

    source: str
    events: tuple[Event, ...]
    resume_offsets: Mapping[str, Offsets]
    listeners: tuple[tuple[SubscriptionListener, ...], ...] = ()


class SubscriptionListener(Protocol):
    """Receives the warnings and the errors that occur while a topic is read for a task. Its methods are called in the
    triggerer's event loop.
    """

    def warn(self, text: str, /) -> None:
        """Write a warning to the task's log. After the warning, the topic is still read."""

    def fail(self, error: KafkaRefused, has_read: bool, /) -> None:
        """Handle the error that ends the subscription, because the cluster refuses to return records of the topic.

        :param has_read: whether records of the topic were already read for this task.
        """


class Subscription(BaseSubscription):
    """The subscription of one waiting task to a topic.

    :ivar key: the key under which :attr:`Batch.resume_offsets` contains the offsets of this subscription.
    :ivar listener: an object whose methods are called with warnings, and with the error that ends the subscription.
    :ivar offsets: the offset from which reading continues, by partition number. `offsets` is None if the subscription
        has not read any records.
    """

    __slots__ = ("_loop", "_warned", "key", "listener", "offsets")

    def __init__(
        self,
        key: str,
        events: Sequence[KafkaEvent],
        *,
        since: float,
        offsets: Mapping[str, int] | None,
        listener: SubscriptionListener,
    ) -> None:
        super().__init__(events, since)
        self.key = key
        self.offsets = None if offsets is None else {int(number): at for number, at in offsets.items()}
        self.listener = listener
        self._warned: str | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def event(self) -> KafkaEvent:
        """The first event specification of the subscription.

        All event specifications of the subscription have the same topic.
        """
        return self.events[0]

    def warn(self, text: str) -> None:
        """Pass a warning to the subscription's listener. This method is called in the thread of the consumers."""
        if text != self._warned:
            self._warned = text
            self._call_soon(self.listener.warn, text)

    def fail(self, refused: KafkaRefused, has_read: bool) -> None:
        """Pass the error that ends the subscription to its listener. This method is called in the thread of the
        consumers.
        """
        self._call_soon(self.listener.fail, refused, has_read or self.offsets is not None)

    def _call_soon(self, receive: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(receive, *arguments)
        except RuntimeError:
            # The event loop is closed, so the wait has ended.
            return


Matches = list[tuple[Event, list[Subscription]]]
"""Pairs of an event and the subscriptions that the event matches."""


class Subscriptions:
    """The subscriptions to the topics of a Kafka cluster.

    :param store: a function that stores a batch in the inbox, on the triggerer's event loop. If this function raises an
        error, it is called again until it succeeds.
    :param first_pause: the longest pause, in seconds, between the first and the second attempt to store a batch.
    :ivar topics: the topics with at least one started subscription, by the name of the topic.
    :ivar pending: the subscriptions whose start offsets are not known yet, by the name of the topic.
    :ivar version: a number that increases when a subscription is added, is removed, or continues with the
        consumer of new records.
    """

    def __init__(
        self, store: Callable[[Batch], Awaitable[object]], *, first_pause: float = FIRST_PAUSE
    ) -> None:
        self._store = store
        self._first_pause = first_pause
        self._changed = asyncio.Event()
        self._checkpointed: dict[Subscription, Offsets] = {}
        self._max_payload_bytes = settings.max_payload_bytes()
        self.topics: dict[str, Topic[Subscription]] = {}
        self.pending: dict[str, dict[Subscription, None]] = {}
        self.version = 0

    def __bool__(self) -> bool:
        return bool(self.topics or self.pending)

    def __iter__(self) -> Iterator[Subscription]:
        for topic in self.topics.values():
            yield from topic.subscriptions
        for pending in self.pending.values():
            yield from pending

    def changed(self) -> None:
        """Notify the consumers that the subscriptions have changed."""
        self.version += 1
        self._changed.set()

    async def wait_for_change(self, seconds: float | None = None) -> None:
        """Wait until the subscriptions change, but at most this number of seconds; None means no limit."""
        self._changed.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return

    def add(self, subscription: Subscription) -> None:
        """Add a subscription. The subscription is pending until its start offsets were found."""
        self.pending.setdefault(subscription.event.topic, {})[subscription] = None
        self.changed()

    def remove(self, subscription: Subscription) -> None:
        """Remove a subscription."""
        name = subscription.event.topic
        self._checkpointed.pop(subscription, None)
        pending = self.pending.get(name, {})
        pending.pop(subscription, None)
        if name in self.pending and not pending:
            del self.pending[name]
        topic = self.topics.get(name)
        if topic is not None:
            topic.remove(subscription)
            if not topic.subscriptions:
                del self.topics[name]
        self.changed()

    def start(self, subscription: Subscription, starts: dict[int, tuple[int, int]]) -> None:
        """Start a pending subscription at the given offsets."""
        name = subscription.event.topic
        topic = self.topics.setdefault(name, Topic(name, subscription.event.source))
        topic.add(subscription, starts)
        pending = self.pending[name]
        del pending[subscription]
        if not pending:
            del self.pending[name]
        self.changed()

    def fail(self, subscriptions: Iterable[Subscription], refused: KafkaRefused) -> None:
        """Pass an error to subscriptions, and remove these subscriptions."""
        for subscription in list(subscriptions):
            is_pending = subscription in self.pending.get(subscription.event.topic, ())
            subscription.fail(refused, not is_pending)
            self.remove(subscription)

    def for_topic(self, name: str) -> list[Subscription]:
        """Return the started and the pending subscriptions to a topic."""
        topic = self.topics.get(name)
        return [*(topic.subscriptions if topic else ()), *self.pending.get(name, ())]

    def match(
        self,
        topic: Topic[Subscription],
        partition: Partition[Subscription],
        records: Sequence[ConsumerRecord[Any, Any]],
        takes: Callable[[Subscription, int], bool],
    ) -> Matches:
        """Return those records of a partition that match at least one subscription, as events with their subscriptions.

        :param takes: a function that returns whether a subscription needs the record at an offset from the consumer
            that calls this method.
        """
        found: Matches = []
        now = time.time()
        for record in records:
            event = kafka_event(
                topic.source,
                topic=topic.name,
                partition=partition.number,
                offset=record.offset,
                timestamp=record.timestamp,
                key=record.key,
                value=record.value,
                headers=record.headers,
                received_at=now,
            )
            subscriptions = [
                subscription
                for subscription in topic.subscribers_of(event)
                if takes(subscription, record.offset)
            ]
            if subscriptions:
                found.append(
                    (self._without_too_large(event, len(record.value or b""), subscriptions), subscriptions)
                )
        return found

    async def store(self, batch: Batch) -> None:
        """Store a batch in the inbox, with retries until it is stored.

        Until the batch is stored, the consumer that calls this method reads no records.
        """
        backoff = Backoff(first_pause=self._first_pause)
        while True:
            try:
                await self._store(batch)
            except Exception as error:
                log.warning("Cannot store events of %s; retrying: %r", batch.source, error)
                await asyncio.sleep(backoff.failed())
            else:
                return

    async def checkpoint(self, topic: Topic[Subscription]) -> None:
        """Store the next offsets of the subscriptions to a topic, if they have changed since the previous
        checkpoint.
        """
        moved = {}
        # Most of the thousands of subscriptions are live and have the same offsets, so they share one dict.
        alike: dict[tuple[tuple[str, int], ...], Offsets] = {}
        for subscription in topic.subscriptions:
            offsets = topic.offsets(subscription)
            if self._checkpointed.get(subscription) != offsets:
                moved[subscription] = alike.setdefault(tuple(offsets.items()), offsets)
        if moved:
            await self.store(Batch(topic.source, (), {one.key: offsets for one, offsets in moved.items()}))
            self._checkpointed.update(
                (one, offsets) for one, offsets in moved.items() if one in topic.subscriptions
            )

    def _without_too_large(self, event: Event, size: int, subscriptions: Iterable[Subscription]) -> Event:
        if size <= self._max_payload_bytes:
            return event
        for subscription in subscriptions:
            subscription.warn(
                f"a record of {event.source} is larger than {self._max_payload_bytes} bytes, so its payload is "
                "dropped. Only its key, headers and metadata can be matched. To keep larger payloads, raise "
                "[deferrable_ops] max_payload_bytes. For later large records, there is no warning"
            )
        return event.without_payload(size)


def make_batch(
    topic: Topic[Subscription], found: Matches, offsets: Callable[[Subscription], Offsets]
) -> Batch:
    """Return a batch with the matched events, and with the offsets from which their subscriptions must continue after a
    restart.
    """
    subscriptions = {subscription for _, listeners in found for subscription in listeners}
    return Batch(
        topic.source,
        tuple(event for event, _ in found),
        {subscription.key: offsets(subscription) for subscription in subscriptions},
        tuple(tuple(subscription.listener for subscription in listeners) for _, listeners in found),
    )
