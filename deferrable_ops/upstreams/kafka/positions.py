"""Who has read how far: the subscriptions of a topic, each at its own offset or gone along with the live consumer.

Pure: no client, no clock, no thread. A subscription begins behind, at an offset of its own in each partition. The catch-up
consumer takes it along from there; where it meets the live consumer's offset the subscription changes over, so that there is
neither a gap nor a second time, and the order within a partition is kept.
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
"""By partition, the offset of the next record. Its keys are texts because that is what JSON makes of them."""

EARLIER: Final = 300.0
"""For how many seconds before ``since`` the search begins, because producers' clocks differ."""

_STEP: Final = 60.0  # those who begin within a minute share a search
_ONE_HOUR: Final = 3_600.0


class BaseSubscription:
    """What one wait asks a topic for, as the positions see it.

    :ivar events: one of which a record must be; all are of one topic.
    :ivar since: seconds since the epoch; a record from before it is not its own.
    """

    __slots__ = ("events", "since")

    def __init__(self, events: Sequence[KafkaEvent], since: float) -> None:
        self.events = tuple(events)
        self.since = since


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a partition holds.

    :param found: the offset and the timestamp, in milliseconds, of the first record that is not older than was
        searched for; None: there is none.
    """

    beginning: int
    end: int
    found: tuple[int, int] | None = None


def search_from(since: float) -> int:
    """Return the timestamp to search for, in milliseconds."""
    return max(0, math.floor((since - EARLIER) / _STEP) * int(_STEP)) * 1_000


def first_offset(since: float, bounds: Bounds) -> int:
    """Return where a subscription begins that has read nothing yet."""
    if bounds.found is None:
        return bounds.end
    return max(bounds.beginning, min(bounds.found[0], bounds.end))


def may_be_deleted(since: float, bounds: Bounds, now: float) -> bool:
    """Return whether records that are not older than `since` may have been deleted.

    They may when the first record that is left is one that a subscription wants, and is not the first there was.
    """
    if bounds.beginning == 0:
        return False
    if bounds.beginning == bounds.end:
        return since < now - _ONE_HOUR  # nothing is left; an idle topic is no news
    return (
        bounds.found is not None and bounds.found[0] <= bounds.beginning and bounds.found[1] / 1_000 > since
    )


class CatchUpGroup(Generic[R]):
    """Subscriptions that are behind at the same offset, and move on together: many are, at few offsets.

    :ivar is_open: whether whoever begins at this offset may join: not once its records are being read.
    """

    __slots__ = ("is_open", "offset", "subscriptions")

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.subscriptions: set[R] = set()
        self.is_open = True


class Partition(Generic[R]):
    """One partition.

    :ivar live: the next offset that the live consumer looks at.
    :ivar stored: the offset before which everything that the live consumer found is stored.
    :ivar behind: by subscription, with whom it is behind, for those who are not live.
    :ivar skip_until: by subscription, the offset before which it has seen everything although it is live; most have none.
    :ivar catch_up: the next offset that the catch-up consumer looks at; None: it is not there.
    """

    __slots__ = ("_groups", "_lowest_next", "behind", "catch_up", "live", "number", "skip_until", "stored")

    def __init__(self, number: int, live: int) -> None:
        self.number = number
        self.live = live
        self.stored = live
        self.behind: dict[R, CatchUpGroup[R]] = {}
        self.skip_until: dict[R, int] = {}
        self.catch_up: int | None = None
        self._groups: list[CatchUpGroup[R]] = []
        self._lowest_next = True

    def move_live(self, offset: int) -> None:
        """Let the live consumer go on elsewhere."""
        self.live = self.stored = offset

    def add(self, subscription: R, offset: int) -> None:
        """Begin to read at an offset."""
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
        """Read no more."""
        self.skip_until.pop(subscription, None)
        group = self.behind.pop(subscription, None)
        if group is not None:
            group.subscriptions.discard(subscription)
            if not group.subscriptions:
                self._groups.remove(group)
        if not self.behind:
            self.behind = {}  # a dict that thousands were in stays as large

    def is_live(self, subscription: R, offset: int) -> bool:
        """Return whether a subscription takes this record from the live consumer."""
        return subscription not in self.behind and offset >= self.skip_until.get(subscription, 0)

    def covered(self, begin: int, end: int) -> list[CatchUpGroup[R]]:
        """Return who is taken along while the catch-up consumer reads from one offset to another."""
        groups = [group for group in self._groups if begin <= group.offset < end]
        for group in groups:
            group.is_open = False
        return groups

    def is_covered(self, subscription: R, begin: int, offset: int) -> bool:
        """Return whether a subscription takes this record from the catch-up consumer, which began at `begin`."""
        group = self.behind.get(subscription)
        return group is not None and begin <= group.offset <= offset

    def advance(self, covered: Sequence[CatchUpGroup[R]], end: int) -> bool:
        """Note that what was found up to an offset is stored.

        Who has met the live consumer changes over; return whether anybody has.
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

    def next_start(self, may_switch: bool) -> int | None:
        """Return where the catch-up consumer reads next; None: nobody is behind.

        It goes on where it is, as long as somebody needs that. In turns it serves who is furthest behind, and who
        has the shortest way: so neither a wait for the last month holds up those for the last hour, nor they it.

        :param may_switch: whether it has been there long enough.
        """
        if not self._groups:
            return None
        offsets = {group.offset for group in self._groups}
        if self.catch_up in offsets and not may_switch:
            return self.catch_up
        if len(offsets) > 1:
            self._lowest_next = not self._lowest_next
        return min(offsets) if self._lowest_next else max(offsets)

    def position(self, subscription: R, *, live: int) -> int:
        """Return the next offset that a subscription needs.

        :param live: what the live consumer has read, and is stored.
        """
        group = self.behind.get(subscription)
        return max(live, self.skip_until.get(subscription, 0)) if group is None else group.offset


class Topic(Generic[R]):
    """A topic and its subscriptions."""

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.partitions: dict[int, Partition[R]] = {}
        self.subscriptions: set[R] = set()
        self._index: MatchIndex[R] = MatchIndex()

    def add(self, subscription: R, starts: Mapping[int, tuple[int, int]]) -> None:
        """Begin a subscription.

        :param starts: by partition, where it begins and where the partition ended before that was searched for.
        """
        for number, (offset, end) in starts.items():
            partition = self.partitions.setdefault(number, Partition(number, end))
            if not self.has_live(partition):
                partition.move_live(end)  # nobody misses what lies between
            partition.add(subscription, offset)
        self.subscriptions.add(subscription)
        for event in subscription.events:
            self._index.add(subscription, event.match)

    def remove(self, subscription: R) -> None:
        """End a subscription."""
        self.subscriptions.discard(subscription)
        for event in subscription.events:
            self._index.discard(subscription, event.match)
        for partition in self.partitions.values():
            partition.remove(subscription)

    def has_live(self, partition: Partition[R]) -> bool:
        """Return whether anybody takes what the live consumer reads of a partition."""
        return len(partition.behind) < len(self.subscriptions)

    def subscribers_of(self, event: Event) -> set[R]:
        """Return the subscriptions that ask for an event. Never raises."""
        return {subscription for subscription in self._index.find(event) if event.time >= subscription.since}

    def offsets(
        self,
        subscription: R,
        *,
        live: Mapping[int, int] | None = None,
        covered: Mapping[int, tuple[Collection[CatchUpGroup[R]], int]] | None = None,
    ) -> Offsets:
        """Return where a subscription would go on after a restart.

        :param live: by partition, up to where what the live consumer has found is stored together with these offsets.
        :param covered: the same of the catch-up consumer, and whom it took along.
        """
        live, covered = live or {}, covered or {}
        offsets = {}
        for number, partition in self.partitions.items():
            taken_along, end = covered.get(number, ((), 0))
            if partition.behind.get(subscription) in taken_along:
                offsets[str(number)] = end
            else:
                offsets[str(number)] = partition.position(
                    subscription, live=live.get(number, partition.stored)
                )
        return offsets
