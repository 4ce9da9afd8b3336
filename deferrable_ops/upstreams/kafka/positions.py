"""Keeps the offset up to which each subscription to a topic has read.

In each partition, each subscription starts at its own offset. The live consumer reads the new records. If the live
consumer has already read past the start offset of a subscription, the catch-up consumer reads the older records. When
the catch-up consumer reaches the offset of the live consumer, the subscription continues with the live consumer. In
this way, a subscription gets each record once, and in the order of the offsets of a partition.

This module does not use a Kafka client, a clock or a thread.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from deferrable_ops.events.event import Event
from deferrable_ops.events.match_index import MatchIndex
from deferrable_ops.events.specifications import KafkaEvent

R = TypeVar("R", bound="BaseSubscription")

Offsets = dict[str, int]
"""The offset of the next record, by partition number. The partition numbers are strings, as in JSON."""

CLOCK_SKEW_SECONDS: Final = 300.0
"""The search for the first record begins this many seconds before ``since``, because producers' clocks differ."""

# Subscriptions that start within a minute share one search.
_SEARCH_STEP_SECONDS: Final = 60.0
_ONE_HOUR: Final = 3_600.0


class BaseSubscription:
    """The subscription of one waiting task to a topic.

    :ivar events: event specifications for one topic. A record matches if it matches at least one of the specifications.
    :ivar since: the time, in seconds since the epoch, from which records are read. A record with an earlier timestamp
        does not match.
    """

    __slots__ = ("events", "since")

    def __init__(self, events: Sequence[KafkaEvent], since: float) -> None:
        self.events = tuple(events)
        self.since = since


@dataclass(frozen=True, slots=True)
class Bounds:
    """The range of the offsets that exist in a Kafka partition.

    :param beginning: the offset of the first record that exists.
    :param end: the offset that the next new record will get.
    :param found: the offset and the timestamp, in milliseconds, of the first record at or after the time that was
        searched for. `found` is None if there is no such record, or if no time was searched for.
    """

    beginning: int
    end: int
    found: tuple[int, int] | None = None


def search_from(since: float) -> int:
    """Return the time, in milliseconds since the epoch, from which a subscription's first record is searched."""
    steps = math.floor((since - CLOCK_SKEW_SECONDS) / _SEARCH_STEP_SECONDS)
    return max(0, steps * int(_SEARCH_STEP_SECONDS)) * 1_000


def first_offset(since: float, bounds: Bounds) -> int:
    """Return the offset at which a subscription starts if it has not read any record yet."""
    if bounds.found is None:
        return bounds.end
    return max(bounds.beginning, min(bounds.found[0], bounds.end))


def may_be_deleted(since: float, bounds: Bounds, now: float) -> bool:
    """Return whether Kafka may have deleted records that are newer than `since`.

    The result is True if Kafka has deleted records at the beginning of the partition, and the first record that still
    exists is newer than `since`. If no record exists any more, the result is True if `since` is more than an hour ago.
    """
    if bounds.beginning == 0:
        return False
    if bounds.beginning == bounds.end:
        # No record remains. This is normal for an idle topic.
        return since < now - _ONE_HOUR
    return (
        bounds.found is not None and bounds.found[0] <= bounds.beginning and bounds.found[1] / 1_000 > since
    )


class CatchUpGroup(Generic[R]):
    """A group of subscriptions that have the same next offset, so that the catch-up consumer reads for all of them at
    the same time.

    Usually many subscriptions have the same next offset. Reading once for all of them saves time.

    :ivar is_open: whether a new subscription with this offset may be added to the group. `is_open` is False after the
        catch-up consumer has begun to read at this offset.
    """

    __slots__ = ("is_open", "offset", "subscriptions")

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.subscriptions: set[R] = set()
        self.is_open = True


class Partition(Generic[R]):
    """A Kafka partition, with the offsets up to which the consumers and subscriptions have read it.

    :ivar live: the next offset that the live consumer (the consumer of new records) reads.
    :ivar stored: an offset. All matching records before this offset that the live consumer has read are stored.
    :ivar behind: the catch-up group of each subscription that has not yet reached the offset of the live consumer. A
        subscription that reads from the live consumer is not in this dict.
    :ivar skip_until: for some subscriptions that read from the live consumer, the offset at which they start. Such a
        subscription does not need the records before this offset.
    :ivar catch_up: the next offset that the catch-up consumer reads. `catch_up` is None if the catch-up consumer does
        not read this partition.
    """

    __slots__ = ("_groups", "_is_at_lowest", "behind", "catch_up", "live", "number", "skip_until", "stored")

    def __init__(self, number: int, live: int) -> None:
        self.number = number
        self.live = live
        self.stored = live
        self.behind: dict[R, CatchUpGroup[R]] = {}
        self.skip_until: dict[R, int] = {}
        self.catch_up: int | None = None
        self._groups: list[CatchUpGroup[R]] = []
        self._is_at_lowest = True

    def move_live(self, offset: int) -> None:
        """Set the next offset that the live consumer (the consumer of new records) reads."""
        self.live = self.stored = offset

    def add(self, subscription: R, offset: int) -> None:
        """Add a subscription that starts to read this partition at `offset`."""
        self.remove(subscription)
        if offset < self.live:
            group = next((one for one in self._groups if one.is_open and one.offset == offset), None)
            if group is None:
                group = CatchUpGroup(offset)
                self._groups.append(group)
            group.subscriptions.add(subscription)
            self.behind[subscription] = group
        elif offset > self.live:
            self.skip_until[subscription] = offset

    def remove(self, subscription: R) -> None:
        """Remove a subscription from this partition."""
        self.skip_until.pop(subscription, None)
        group = self.behind.pop(subscription, None)
        if group is not None:
            group.subscriptions.discard(subscription)
            if not group.subscriptions:
                self._groups.remove(group)
        if not self.behind:
            # Create a new dict to free memory: a dict does not shrink after thousands of entries were removed.
            self.behind = {}

    def is_live(self, subscription: R, offset: int) -> bool:
        """Return whether a subscription needs the record at `offset` from the consumer of new records."""
        return subscription not in self.behind and offset >= self.skip_until.get(subscription, 0)

    def close_groups(self, begin: int, end: int) -> list[CatchUpGroup[R]]:
        """Return the groups whose next offset is at least `begin` and less than `end`.

        After this call, no new subscription can be added to these groups.
        """
        groups = [group for group in self._groups if begin <= group.offset < end]
        for group in groups:
            group.is_open = False
        return groups

    def is_covered(self, subscription: R, begin: int, offset: int) -> bool:
        """Return whether a subscription needs the record at `offset` from the catch-up consumer, which began to read at
        `begin`.
        """
        group = self.behind.get(subscription)
        return group is not None and begin <= group.offset <= offset

    def advance(self, covered: Sequence[CatchUpGroup[R]], end: int) -> bool:
        """Set the next offset of groups to `end`, after their matching records before `end` were stored.

        Return whether `end` has reached the offset of the live consumer. If so, the subscriptions of these groups
        continue with the live consumer.
        """
        groups = [group for group in covered if group.subscriptions]
        if not groups:
            return False
        if end >= self.live:
            for group in groups:
                for subscription in list(group.subscriptions):
                    self.add(subscription, end)
            return True
        largest = max(groups, key=lambda group: len(group.subscriptions))
        largest.offset = end
        for group in groups:
            if group is not largest:
                self._groups.remove(group)
                largest.subscriptions |= group.subscriptions
                self.behind.update(dict.fromkeys(group.subscriptions, largest))
        return False

    def choose_next_start(self, may_switch: bool) -> int | None:
        """Return the next offset that the catch-up consumer must read. Return None if all subscriptions have reached
        the offset of the live consumer (the consumer of new records).

        If `may_switch` is False, the catch-up consumer continues at its current offset while a group needs this offset.
        If `may_switch` is True, the catch-up consumer alternates between the lowest and the highest offset of the
        groups. So a task that needs the records of an hour does not wait for a task that needs the records of a
        month.

        :param may_switch: whether the catch-up consumer may switch to another offset.
        """
        if not self._groups:
            return None
        offsets = {group.offset for group in self._groups}
        if self.catch_up in offsets and not may_switch:
            return self.catch_up
        if len(offsets) > 1:
            self._is_at_lowest = not self._is_at_lowest
        return min(offsets) if self._is_at_lowest else max(offsets)

    def position(self, subscription: R, *, live: int) -> int:
        """Return the next offset that a subscription reads.

        :param live: an offset. All matching records before this offset that the live consumer has read are stored.
        """
        group = self.behind.get(subscription)
        return max(live, self.skip_until.get(subscription, 0)) if group is None else group.offset


class Topic(Generic[R]):
    """A topic, its partitions, and the subscriptions of the waits that read it."""

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.partitions: dict[int, Partition[R]] = {}
        self.subscriptions: set[R] = set()
        self._index: MatchIndex[R] = MatchIndex()

    def add(self, subscription: R, starts: Mapping[int, tuple[int, int]]) -> None:
        """Start a subscription.

        :param starts: two offsets for each partition number: the offset at which the subscription starts, and the
            offset that the next new record will get. The second offset must have been read from Kafka before the first
            offset was searched.
        """
        for number, (offset, end) in starts.items():
            partition = self.partitions.setdefault(number, Partition(number, end))
            if not self.has_live(partition):
                # No live subscription needs the records before `end`, so the live consumer can skip them.
                partition.move_live(end)
            partition.add(subscription, offset)
        self.subscriptions.add(subscription)
        for event in subscription.events:
            self._index.add(subscription, event.match)

    def remove(self, subscription: R) -> None:
        """Remove a subscription."""
        self.subscriptions.discard(subscription)
        for event in subscription.events:
            self._index.discard(subscription, event.match)
        for partition in self.partitions.values():
            partition.remove(subscription)

    def has_live(self, partition: Partition[R]) -> bool:
        """Return whether at least one subscription of this topic needs the new records of this partition."""
        return len(partition.behind) < len(self.subscriptions)

    def subscribers_of(self, event: Event) -> set[R]:
        """Return the subscriptions whose specifications match an event. This method raises no exception."""
        return {subscription for subscription in self._index.find(event) if event.time >= subscription.since}

    def offsets(
        self,
        subscription: R,
        *,
        live: Mapping[int, int] | None = None,
        covered: Mapping[int, tuple[Collection[CatchUpGroup[R]], int]] | None = None,
    ) -> Offsets:
        """Return the offsets from which a subscription must continue after a restart, by partition number.

        :param live: an offset of the live consumer for each partition number. The matching records that the live
            consumer read before this offset are stored in the same transaction as the returned offsets.
        :param covered: for each partition number, the catch-up groups whose records are stored in this transaction, and
            the next offset of these groups.
        """
        live, covered = live or {}, covered or {}
        offsets = {}
        for number, partition in self.partitions.items():
            groups, end = covered.get(number, ((), 0))
            if partition.behind.get(subscription) in groups:
                offsets[str(number)] = end
            else:
                offsets[str(number)] = partition.position(
                    subscription, live=live.get(number, partition.stored)
                )
        return offsets
