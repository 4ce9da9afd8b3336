"""Collects the events of one wait.

Events of channels and queues arrive in commit order, through the inbox's feed. For Kafka topics, each wait reads from
its own offset. So a record may already be stored for another wait, although this wait has not yet read the records
before that record. To keep the order of each partition, a wait counts records in the order in which it reads them.
After a restart, the records that the wait had read before are replayed from the inbox, up to the offsets stored for the
wait.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from deferrable_ops.events.event import Event
from deferrable_ops.events.matching import matching_names
from deferrable_ops.events.received import ReceivedEvents
from deferrable_ops.events.specifications import KafkaEvent, Specification
from deferrable_ops.inbox.events.events import AppendResult, Events, StoredEvent
from deferrable_ops.inbox.events.feed import Feed
from deferrable_ops.inbox.watcher import Subscription
from deferrable_ops.triggers.events.routing import WaitFollower, to_event

_EVENTS_PER_PAGE: Final = 200
_RECHECK_SECONDS: Final = 0.1
_NO_FOLLOWER: Final[AbstractContextManager[Any]] = nullcontext()
# To save memory, all of the thousands of waits share this object.
_NO_OFFSETS: Final[Mapping[str, Any]] = {}


class EventCollector:
    """Collects the events of one wait until its condition is true.

    The Kafka and SQS upstreams report problems to the collector, which implements their listener interfaces.

    :param specifications: the specifications by event name.
    :param since: seconds since the epoch. Events with an earlier ``time`` are ignored.
    :param latest: the deadline, in seconds since the epoch. Events that the inbox received later are ignored.
    :param changes: the subscription to wake when there are events to collect.
    :ivar specifications: the specifications in the order of the names.
    :ivar failed_because: why the wait must fail; None while the wait may continue.
    """

    __slots__ = (
        "_changes",
        "_follower",
        "_has_followed",
        "_records",
        "_replay",
        "_replay_upto",
        "_replayed_keys",
        "_resumed",
        "_scanned_upto",
        "_warnings",
        "failed_because",
        "latest",
        "received",
        "since",
        "specifications",
    )

    def __init__(
        self,
        specifications: Mapping[str, Specification],
        received: ReceivedEvents,
        *,
        since: float,
        latest: float,
        changes: Subscription,
    ) -> None:
        self.specifications = tuple(specifications[name] for name in received.names)
        self.received = received
        self.since = since
        self.latest = latest
        self.failed_because: str | None = None
        self._warnings: tuple[str, ...] = ()
        self._follower: WaitFollower | None = None
        self._changes = changes
        self._has_followed = False
        self._scanned_upto = 0
        # Kafka records that were read for this wait and are not counted yet.
        self._records: list[tuple[AppendResult, Event]] | None = None
        # For each Kafka topic (by source name), the offsets at which reading continues after a restart. None instead of
        # the offsets: replay all records of the topic.
        self._resumed: Mapping[str, Mapping[str, int] | None] = _NO_OFFSETS
        # The events from before a restart, which are counted before all new events. None: there is nothing to replay.
        self._replay: list[StoredEvent] | None = None
        self._replay_upto = 0
        # Dedupe keys of replayed Kafka records. They are needed because Kafka may deliver these records again.
        self._replayed_keys: Collection[str] = ()

    @property
    def named_specifications(self) -> Iterator[tuple[str, Specification]]:
        """The event names with their specifications.

        They are not stored as a dict, to save memory: there are thousands of waits.
        """
        return zip(self.received.names, self.specifications, strict=True)

    def resume_from(self, source: str, offsets: Mapping[str, int] | None, upto: int = 0) -> None:
        """Replay the records of a Kafka topic that were read before a restart. They are taken from the inbox.

        :param offsets: by partition, the offset at which reading resumes. None: replay all records of the topic in the
            inbox.
        :param upto: the number of the newest event in the inbox. All of these records have this number or a lower
            number.
        """
        self._resumed = {**self._resumed, source: offsets}
        self._replay, self._replay_upto = [], max(upto, self._replay_upto)

    def follow(self, feed: Feed) -> AbstractContextManager[Any]:
        """Receive new events of this wait's channels and queues from the inbox, while the ``with`` statement lasts."""
        self._has_followed = True
        sources = self._followed_sources()
        if not sources:
            return _NO_FOLLOWER
        wanted = tuple(one for one in self.specifications if one.source in sources)
        if wanted == self.specifications:
            # Share the tuple, to save memory.
            wanted = self.specifications
        self._follower = WaitFollower(
            feed,
            wanted,
            since=self.since,
            after=self.received.order,
            changes=self._changes,
            wakes_when_live=self._replay is not None,
        )
        return self._follower

    def add_record(self, commit: AppendResult, event: Event) -> None:
        """Add a stored Kafka record that was read for this wait. Add the records of a partition in order."""
        if self._records is None:
            self._records = []
        self._records.append((commit, event))
        self._changes.wake()

    async def collect(self, events: Events) -> bool:
        """Count the events that have arrived. Return whether any of them matched."""
        matched = False
        if self._follower is not None:
            if self._follower.has_some:
                matched = self._count_kept(await self._follower.next())
            if self._follower.upto >= self._replay_upto:
                matched |= self._count_replay()
            elif self._follower.is_live:
                # The feed is behind. When it has caught up, it does not notify live followers, so check again later.
                asyncio.get_running_loop().call_later(_RECHECK_SECONDS, self._changes.wake)
        return await self._count_records(events) or matched

    async def drain(self, events: Events, wait_id: str) -> None:
        """Count all events that the inbox has for this wait now. Events that arrive later are ignored."""
        if not self._has_followed:
            for source in {one.source for one in self.specifications if _is_kafka(one)}:
                self.resume_from(source, await events.position_of(source, wait_id))
        await self.collect(events)
        after = 0 if self._follower is None else self._follower.position or 0
        await self._count_pages(events, self._followed_sources(), after, await events.newest())
        self._count_replay()
        await self._count_records(events)

    def warn(self, warning: str) -> None:
        """Add a warning. The wait writes it to the task's log, because nothing else can write to that log."""
        self._warnings = (*self._warnings, warning)
        self._changes.wake()

    def take_warnings(self) -> tuple[str, ...]:
        """Return the warnings since the last call."""
        warnings, self._warnings = self._warnings, ()
        return warnings

    def fail(self, reason: str) -> None:
        """Make the wait fail."""
        self.failed_because = reason
        self._changes.wake()

    def _followed_sources(self) -> set[str]:
        wanted = self.specifications
        return {one.source for one in wanted if not _is_kafka(one) or one.source in self._resumed}

    def _count_kept(self, page: Iterable[StoredEvent]) -> bool:
        matched = False
        for kept in page:
            is_kafka = kept.source in self._resumed
            if self._replay is not None:
                if not is_kafka or _was_read_before(kept, self._resumed[kept.source]):
                    self._replay.append(kept)
            elif not is_kafka:
                matched |= self._count(kept.number, kept.received_at, to_event(kept))
        return matched

    def _count_replay(self) -> bool:
        if self._replay is None:
            return False
        replay, self._replay = self._replay, None
        self._replayed_keys = {kept.dedupe_key for kept in replay if kept.source in self._resumed}
        matched = False
        for number, kept in _in_partition_order(replay):
            matched |= self._count(number, kept.received_at, to_event(kept))
        return matched

    async def _count_records(self, events: Events) -> bool:
        """Count the Kafka records read for this wait. Before each record, count earlier events of other sources."""
        matched = False
        others = {one.source for one in self.specifications if not _is_kafka(one)}
        while self._records and self._replay is None:
            records, self._records = self._records, None
            for commit, event in records:
                if others:
                    after = max(self.received.order, self._scanned_upto)
                    await self._count_pages(events, others, after, commit.number)
                if event.dedupe_key not in self._replayed_keys:
                    matched |= self._count(None, commit.received_at, event)
        return matched

    async def _count_pages(self, events: Events, sources: Collection[str], after: int, upto: int) -> None:
        after = max(after, self.received.order)
        while not self.received.complete and after < upto:
            page = await events.read(
                sources, after=after, upto=upto, since=self.since, limit=_EVENTS_PER_PAGE
            )
            self._count_kept(page)
            after = page[-1].number if len(page) == _EVENTS_PER_PAGE else upto
        self._scanned_upto = max(self._scanned_upto, after)

    def _count(self, order: int | None, received_at: float, event: Event) -> bool:
        received = self.received
        if received_at > self.latest or (order is not None and order <= received.order):
            return False
        names = matching_names(dict(self.named_specifications), event, since=self.since)
        if names:
            received.add(order, event, names)
        return bool(names)


def _is_kafka(specification: Specification) -> bool:
    return type(specification) is KafkaEvent


def _was_read_before(kept: StoredEvent, offsets: Mapping[str, int] | None) -> bool:
    """Return whether a Kafka record is before the offset at which reading resumes. Without offsets, return True."""
    if offsets is None:
        return True
    partition, offset = _position(kept)
    return offset < offsets.get(str(partition), 0)


def _in_partition_order(kept: Sequence[StoredEvent]) -> Iterator[tuple[int, StoredEvent]]:
    """Yield order numbers and events, with the records of each Kafka partition sorted by offset.

    Several waits read a partition, each from its own offset, so the records of a partition may be stored out of order.
    Only these records change places with each other. All other events keep their places.

    :param kept: the events in commit order.
    """
    partitions: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, one in enumerate(kept):
        if "partition" in one.attributes["metadata"]:
            partitions[one.source, _position(one)[0]].append(index)
    ordered = list(kept)
    for indexes in partitions.values():
        in_order = sorted((kept[index] for index in indexes), key=_position)
        for index, one in zip(indexes, in_order, strict=True):
            ordered[index] = one
    return zip((one.number for one in kept), ordered, strict=True)


def _position(kept: StoredEvent) -> tuple[int, int]:
    metadata = kept.attributes["metadata"]
    return metadata["partition"], metadata["offset"]
