"""All subscriptions of a cluster, as the two consumers share them. Everything here happens in the subscription thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from deferrable_ops import settings
from deferrable_ops.events import KafkaEvent
from deferrable_ops.events.event import Event, kafka_event
from deferrable_ops.exceptions import KafkaRefused
from deferrable_ops.upstreams.backoff import Backoff
from deferrable_ops.upstreams.kafka.positions import BaseSubscription, Offsets, Partition, Topic

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """What is to be stored in one transaction.

    :param source: the topic, as :attr:`~deferrable_ops.events.KafkaEvent.source` says it.
    :param events: of this source, each listeners for by some subscription here, in the order of each partition; maybe none.
    :param resume_offsets: by the key of a subscription, the offsets at which it goes on after a restart, once this is stored.
    :param listeners: for each event, those of :class:`SubscriptionListener` who listeners for it. They are handed it once it is stored.
    """

    source: str
    events: tuple[Event, ...]
    resume_offsets: Mapping[str, Offsets]
    listeners: tuple[tuple[SubscriptionListener, ...], ...] = ()


class SubscriptionListener(Protocol):
    """Who is listener of trouble, on the event loop of the waits."""

    def warn(self, text: str, /) -> None:
        """Take what the task's log should say; subscription goes on."""

    def fail(self, reason: str, /) -> None:
        """Take the reason why nothing can be read any more, and trying again would not help."""


class Subscription(BaseSubscription):
    """What one wait asks a topic for, while it is read for.

    :ivar key: tells it from other subscriptions of its topic, in :attr:`Batch.resume_offsets`.
    :ivar listener: whose it is.
    :ivar offsets: where it goes on; None: it has read nothing yet.
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
        """One of what it asks for, which says what the topic is."""
        return self.events[0]

    def warn(self, text: str) -> None:
        """Hand over a warning, from the subscription thread."""
        if text != self._warned:
            self._warned = text
            self._call_soon(self.listener.warn, text)

    def fail(self, refused: KafkaRefused) -> None:
        """End it for good, from the subscription thread."""
        self._call_soon(self.listener.fail, str(refused))

    def _call_soon(self, take: Callable[[str], None], news: str) -> None:
        try:
            self._loop.call_soon_threadsafe(take, news)
        except RuntimeError:
            return  # its event loop is closed: nobody waits any more


Matches = list[tuple[Event, list[Subscription]]]
"""Events, and for each who listeners for it."""


class Subscriptions:
    """The subscriptions of a cluster.

    :param store: stores a batch in the event loop of the waits; what it raises is tried again, for as long as it takes.
    :ivar topics: by name, those whose subscriptions have begun.
    :ivar pending: by topic, the subscriptions for which it is not known where they begin.
    :ivar version: grows whenever somebody comes, leaves, or changes from one consumer to the other.
    """

    def __init__(self, store: Callable[[Batch], Awaitable[object]]) -> None:
        self._store = store
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
        """Note that the consumers may have something else to do."""
        self.version += 1
        self._changed.set()

    async def wait_for_change(self, seconds: float | None = None) -> None:
        """Return when something has changed, or so many seconds later."""
        self._changed.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return

    def add(self, subscription: Subscription) -> None:
        """Take a subscription, whose beginning is to be found."""
        self.pending.setdefault(subscription.event.topic, {})[subscription] = None
        self.changed()

    def remove(self, subscription: Subscription) -> None:
        """Read no more for it."""
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
        """Begin a subscription that is pending, where it has been found to begin."""
        name = subscription.event.topic
        topic = self.topics.setdefault(name, Topic(name, subscription.event.source))
        topic.add(subscription, starts)
        pending = self.pending[name]
        del pending[subscription]
        if not pending:
            del self.pending[name]
        self.changed()

    def fail(self, subscriptions: Iterable[Subscription], refused: KafkaRefused) -> None:
        """End subscriptions for good."""
        for subscription in list(subscriptions):
            subscription.fail(refused)
            self.remove(subscription)

    def for_topic(self, name: str) -> list[Subscription]:
        """Return the subscriptions of a topic."""
        topic = self.topics.get(name)
        return [*(topic.subscriptions if topic else ()), *self.pending.get(name, ())]

    def find(
        self,
        topic: Topic[Subscription],
        partition: Partition[Subscription],
        records: Sequence[ConsumerRecord[Any, Any]],
        takes: Callable[[Subscription, int], bool],
    ) -> Matches:
        """Return what of a partition's records is listeners for, in their order.

        :param takes: whether a subscription takes the record at an offset from this consumer.
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
        """Store a batch, sooner or later. Until then whoever has it reads no further."""
        backoff = Backoff()
        while True:
            try:
                await self._store(batch)
            except Exception as error:
                log.warning("Events of %s cannot be stored: %r", batch.source, error)
                await asyncio.sleep(backoff.failed())
            else:
                return

    async def checkpoint(self, topic: Topic[Subscription]) -> None:
        """Store how far the subscriptions of a topic are, of those that have moved on."""
        moved = {}
        alike: dict[
            tuple[tuple[str, int], ...], Offsets
        ] = {}  # of thousands, most are live, and at one place
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
                f"a record of {event.source} has more than {self._max_payload_bytes} bytes ([deferrable_ops] "
                "max_payload_bytes): it is kept without its payload, and only a match on key, headers or metadata "
                "takes it; so will others be"
            )
        return event.without_payload(size)


def make_batch(
    topic: Topic[Subscription], found: Matches, offsets: Callable[[Subscription], Offsets]
) -> Batch:
    """Return what is stored of what was found."""
    subscriptions = {subscription for _, listeners in found for subscription in listeners}
    return Batch(
        topic.source,
        tuple(event for event, _ in found),
        {subscription.key: offsets(subscription) for subscription in subscriptions},
        tuple(tuple(subscription.listener for subscription in listeners) for _, listeners in found),
    )
