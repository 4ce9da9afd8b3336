"""Who has read how far: the readings of a topic, each at its own offset or gone along with the live consumer.

Pure: no client, no clock, no thread. A reading begins behind, at an offset of its own in each partition. The catch-up
consumer takes it along from there; where it meets the live consumer's offset the reading changes over, so that there is
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

R = TypeVar("R", bound="Standing")

Offsets = dict[str, int]
"""By partition, the offset of the next record. Its keys are texts because that is what JSON makes of them."""

EARLIER: Final = 300.0
"""For how many seconds before ``since`` the search begins, because producers' clocks differ."""

_STEP: Final = 60.0  # those who begin within a minute share a search
_ONE_HOUR: Final = 3_600.0


class Standing:
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
    """Return where a reading begins that has read nothing yet."""
    if bounds.found is None:
        return bounds.end
    return max(bounds.beginning, min(bounds.found[0], bounds.end))


def may_be_deleted(since: float, bounds: Bounds, now: float) -> bool:
    """Return whether records that are not older than `since` may have been deleted.

    They may when the first record that is left is one that a reading wants, and is not the first there was.
    """
    if bounds.beginning == 0:
        return False
    if bounds.beginning == bounds.end:
        return since < now - _ONE_HOUR  # nothing is left; an idle topic is no news
    return (
        bounds.found is not None and bounds.found[0] <= bounds.beginning and bounds.found[1] / 1_000 > since
    )


class Group(Generic[R]):
    """Readings that are behind at the same offset, and move on together: many are, at few offsets.

    :ivar is_open: whether whoever begins at this offset may join: not once its records are being read.
    """

    __slots__ = ("is_open", "offset", "readings")

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.readings: set[R] = set()
        self.is_open = True


class Partition(Generic[R]):
    """One partition.

    :ivar live: the next offset that the live consumer looks at.
    :ivar stored: the offset before which everything that the live consumer found is stored.
    :ivar behind: by reading, with whom it is behind, for those who are not live.
    :ivar floors: by reading, the offset before which it has seen everything although it is live; most have none.
    :ivar catch_up: the next offset that the catch-up consumer looks at; None: it is not there.
    """

    __slots__ = ("_groups", "_lowest_next", "behind", "catch_up", "floors", "live", "number", "stored")

    def __init__(self, number: int, live: int) -> None:
        self.number = number
        self.live = live
        self.stored = live
        self.behind: dict[R, Group[R]] = {}
        self.floors: dict[R, int] = {}
        self.catch_up: int | None = None
        self._groups: list[Group[R]] = []
        self._lowest_next = True

    def move_live(self, offset: int) -> None:
        """Let the live consumer go on elsewhere."""
        self.live = self.stored = offset

    def enter(self, reading: R, offset: int) -> None:
        """Begin to read at an offset."""
        self.leave(reading)
        if offset < self.live:
            group = next((one for one in self._groups if one.is_open and one.offset == offset), None)
            if group is None:
                group = Group(offset)
                self._groups.append(group)
            group.readings.add(reading)
            self.behind[reading] = group
        elif offset > self.live:
            self.floors[reading] = offset

    def leave(self, reading: R) -> None:
        """Read no more."""
        self.floors.pop(reading, None)
        group = self.behind.pop(reading, None)
        if group is not None:
            group.readings.discard(reading)
            if not group.readings:
                self._groups.remove(group)
        if not self.behind:
            self.behind = {}  # a dict that thousands were in stays as large

    def is_live(self, reading: R, offset: int) -> bool:
        """Return whether a reading takes this record from the live consumer."""
        return reading not in self.behind and offset >= self.floors.get(reading, 0)

    def carried(self, begin: int, end: int) -> list[Group[R]]:
        """Return who is taken along while the catch-up consumer reads from one offset to another."""
        groups = [group for group in self._groups if begin <= group.offset < end]
        for group in groups:
            group.is_open = False
        return groups

    def is_carried(self, reading: R, begin: int, offset: int) -> bool:
        """Return whether a reading takes this record from the catch-up consumer, which began at `begin`."""
        group = self.behind.get(reading)
        return group is not None and begin <= group.offset <= offset

    def caught_up(self, carried: Sequence[Group[R]], end: int) -> bool:
        """Note that what was found up to an offset is stored.

        Who has met the live consumer changes over; return whether anybody has.
        """
        groups = [group for group in carried if group.readings]
        if not groups:
            return False
        if end >= self.live:
            for group in groups:
                for reading in list(group.readings):
                    self.enter(reading, end)
            return True
        largest = max(groups, key=lambda group: len(group.readings))
        largest.offset = end
        for group in groups:
            if group is not largest:
                self._groups.remove(group)
                largest.readings |= group.readings
                self.behind.update(dict.fromkeys(group.readings, largest))
        return False

    def next_start(self, may_turn: bool) -> int | None:
        """Return where the catch-up consumer reads next; None: nobody is behind.

        It goes on where it is, as long as somebody needs that. In turns it serves who is furthest behind, and who
        has the shortest way: so neither a wait for the last month holds up those for the last hour, nor they it.

        :param may_turn: whether it has been there long enough.
        """
        if not self._groups:
            return None
        offsets = {group.offset for group in self._groups}
        if self.catch_up in offsets and not may_turn:
            return self.catch_up
        if len(offsets) > 1:
            self._lowest_next = not self._lowest_next
        return min(offsets) if self._lowest_next else max(offsets)

    def position(self, reading: R, *, live: int) -> int:
        """Return the next offset that a reading needs.

        :param live: what the live consumer has read, and is stored.
        """
        group = self.behind.get(reading)
        return max(live, self.floors.get(reading, 0)) if group is None else group.offset


class Topic(Generic[R]):
    """A topic and its readings."""

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.partitions: dict[int, Partition[R]] = {}
        self.readings: set[R] = set()
        self._index: MatchIndex[R] = MatchIndex()

    def enter(self, reading: R, starts: Mapping[int, tuple[int, int]]) -> None:
        """Begin a reading.

        :param starts: by partition, where it begins and where the partition ended before that was searched for.
        """
        for number, (offset, end) in starts.items():
            partition = self.partitions.setdefault(number, Partition(number, end))
            if not self.has_live(partition):
                partition.move_live(end)  # nobody misses what lies between
            partition.enter(reading, offset)
        self.readings.add(reading)
        for event in reading.events:
            self._index.add(reading, event.match)

    def leave(self, reading: R) -> None:
        """End a reading."""
        self.readings.discard(reading)
        for event in reading.events:
            self._index.discard(reading, event.match)
        for partition in self.partitions.values():
            partition.leave(reading)

    def has_live(self, partition: Partition[R]) -> bool:
        """Return whether anybody takes what the live consumer reads of a partition."""
        return len(partition.behind) < len(self.readings)

    def met(self, event: Event) -> set[R]:
        """Return the readings that ask for an event. Never raises."""
        return {reading for reading in self._index.find(event) if event.time >= reading.since}

    def offsets(
        self,
        reading: R,
        *,
        live: Mapping[int, int] | None = None,
        carried: Mapping[int, tuple[Collection[Group[R]], int]] | None = None,
    ) -> Offsets:
        """Return where a reading would go on after a restart.

        :param live: by partition, up to where what the live consumer has found is stored together with these offsets.
        :param carried: the same of the catch-up consumer, and whom it took along.
        """
        live, carried = live or {}, carried or {}
        offsets = {}
        for number, partition in self.partitions.items():
            taken_along, end = carried.get(number, ((), 0))
            if partition.behind.get(reading) in taken_along:
                offsets[str(number)] = end
            else:
                offsets[str(number)] = partition.position(reading, live=live.get(number, partition.stored))
        return offsets
