"""Collects the events for one waiting task.

The inbox delivers events of channels and SQS queues in the order of their commits. For Kafka topics, each waiting task
reads from its own offset. So the inbox may already contain a Kafka record that one task has read, while another task
has not yet read earlier records of the same partition. To keep the order of each partition, a task processes Kafka
records in the order in which the task itself reads them. After a restart, the task processes again the Kafka records
in the inbox that it had read before the restart, up to its stored offsets.
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
from deferrable_ops.exceptions import DeferrableOpsError
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
    """Collects the events for one waiting task until the condition of this task is true.

    The Kafka and SQS clients report problems to the collector, which implements their listener interfaces.

    :param specifications: the event specifications, by event name.
    :param since: a time in seconds since the epoch. Events with a ``time`` before `since` are ignored.
    :param latest: the deadline in seconds since the epoch. Events that the inbox received after this deadline are
        ignored.
    :param changes: the subscription of the wait, which the collector wakes when there are events to collect.
    :ivar specifications: the event specifications, in the same order as the event names.
    :ivar error: the error that ended the reading of a source; None while all sources are read.
    :ivar has_read: whether the source that caused `error` was read for this wait before the error.
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
        "error",
        "has_read",
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
        self.error: DeferrableOpsError | None = None
        self.has_read = False
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
        """Pairs of an event name and its specification.

        These pairs are not stored as a dict, to save memory, because one process may have thousands of waiting tasks.
        """
        return zip(self.received.names, self.specifications, strict=True)

    def resume_from(self, source: str, offsets: Mapping[str, int] | None, upto: int = 0) -> None:
        """After a restart, process again the records of a Kafka topic that this wait had read, as stored in the inbox.

        :param offsets: the offset of each partition at which reading from Kafka resumes. With ``offsets=None``, all
            records of the topic in the inbox are processed.
        :param upto: the number of the newest event in the inbox; no record with a higher number is processed again.
        """
        self._resumed = {**self._resumed, source: offsets}
        self._replay, self._replay_upto = [], max(upto, self._replay_upto)

    def follow(self, feed: Feed) -> AbstractContextManager[Any]:
        """Receive new events of this wait's channels and SQS queues from the inbox during the ``with`` statement."""
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
        """Add a Kafka record that was read for this wait and is stored in the inbox.

        The caller must add the records of a partition in the order of their offsets.
        """
        if self._records is None:
            self._records = []
        self._records.append((commit, event))
        self._changes.wake()

    async def collect(self, events: Events) -> bool:
        """Process the events that arrived since the last call. Return whether at least one of these events matched."""
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
        """Process all events that the inbox contains for this wait now, and ignore events that arrive later."""
        if not self._has_followed:
            for source in {one.source for one in self.specifications if _is_kafka(one)}:
                self.resume_from(source, await events.position_of(source, wait_id))
        await self.collect(events)
        after = 0 if self._follower is None else self._follower.position or 0
        await self._count_pages(events, self._followed_sources(), after, await events.newest())
        self._count_replay()
        await self._count_records(events)

    def warn(self, warning: str) -> None:
        """Keep a warning until the trigger writes the warning to the task's log."""
        self._warnings = (*self._warnings, warning)
        self._changes.wake()

    def take_warnings(self) -> tuple[str, ...]:
        """Return the warnings that were added since the last call of this method."""
        warnings, self._warnings = self._warnings, ()
        return warnings

    def fail(self, error: DeferrableOpsError, has_read: bool) -> None:
        """Stop collecting, because a source failed.

        :param has_read: whether the source was read for this wait before the error.
        """
        self.error, self.has_read = error, has_read
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
        """Process the Kafka records that were read for this wait.

        Before each record, process the events of other sources that were committed to the inbox before this record.
        """
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
    """Return whether a Kafka record is before the offset at which reading resumes; True if `offsets` is None."""
    if offsets is None:
        return True
    partition, offset = _position(kept)
    return offset < offsets.get(str(partition), 0)


def _in_partition_order(kept: Sequence[StoredEvent]) -> Iterator[tuple[int, StoredEvent]]:
    """Return pairs of a number and an event, in which the records of each Kafka partition are sorted by offset.

    The inbox may contain the records of a partition in another order than Kafka, because several waiting tasks read
    the partition, each from its own offset. Events that are not Kafka records stay at their position in the sequence.
    The numbers ascend, as in `kept`.

    :param kept: the events in the order of their commits to the inbox.
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
