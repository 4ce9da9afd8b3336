"""Every subscription sees every record from its beginning on, once, in order, whichever consumer reads it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deferrable_ops.events import KafkaEvent
from deferrable_ops.events.event import kafka_event
from deferrable_ops.upstreams.kafka.positions import (
    BaseSubscription,
    Bounds,
    Partition,
    Topic,
    first_offset,
    may_be_deleted,
    search_from,
)

NOW = 1_000_000.0


class Log:
    """A partition of a topic with its two consumers, moved by hand."""

    def __init__(self) -> None:
        self.end = 0
        self.topic: Topic[BaseSubscription] = Topic("t", "kafka:c/t")
        self.seen: dict[BaseSubscription, list[int]] = {}

    @property
    def partition(self) -> Partition[BaseSubscription]:
        return self.topic.partitions[0]

    def add(self, offset: int) -> BaseSubscription:
        subscription = BaseSubscription([KafkaEvent("t")], 0.0)
        self.seen[subscription] = []
        self.topic.add(subscription, {0: (offset, self.end)})
        return subscription

    def live(self, records: int) -> None:
        if not self.topic.subscriptions or not self.topic.has_live(self.partition):
            return  # paused
        end = min(self.partition.live + records, self.end)
        for offset in range(self.partition.live, end):
            for subscription in self.topic.subscriptions:
                if self.partition.is_live(subscription, offset):
                    self.seen[subscription].append(offset)
        self.partition.live = self.partition.stored = end

    def offsets_behind(self) -> list[int]:
        return sorted(group.offset for group in self.partition.behind.values())

    def catch_up(
        self, records: int, may_switch: bool = False, comes_meanwhile: Callable[[], object] | None = None
    ) -> None:
        if not self.topic.subscriptions:
            return
        begin = self.partition.next_start(may_switch)
        if begin is None:
            self.partition.catch_up = None
            return
        assert begin in self.offsets_behind(), "somebody needs it"
        end = min(begin + records, self.end)
        covered = self.partition.close_groups(begin, end)
        for offset in range(begin, end):
            for subscription in self.topic.subscriptions:
                if self.partition.is_covered(subscription, begin, offset):
                    self.seen[subscription].append(offset)
        if comes_meanwhile is not None:  # while what was found is being stored
            comes_meanwhile()
        self.partition.advance(covered, end)
        self.partition.catch_up = end


steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 9)),
        st.tuples(st.just("enter"), st.integers(0, 40)),
        st.tuples(st.just("leave"), st.integers(0, 9)),
        st.tuples(st.just("live"), st.integers(1, 9)),
        st.tuples(st.just("catch up"), st.integers(1, 9)),
        st.tuples(st.just("turn"), st.integers(1, 9)),
        st.tuples(st.just("enter while catching up"), st.integers(0, 40)),
    ),
    min_size=15,
    max_size=60,
)


@settings(max_examples=500)
@given(steps)
def test_reading_sees_every_record_from_its_beginning_once_and_in_order(steps: list[tuple[str, int]]) -> None:
    log = Log()
    began: dict[BaseSubscription, int] = {}
    for what, number in steps:
        if what == "append":
            log.end += number
        elif what == "enter":
            offset = min(number, log.end)
            began[log.add(offset)] = offset
        elif what == "leave" and began:
            subscription = list(began)[number % len(began)]
            log.topic.remove(subscription)
            del began[subscription]
        elif what == "live":
            log.live(number)
        elif what == "enter while catching up":
            offset = min(number, log.end)
            log.catch_up(5, comes_meanwhile=lambda o=offset: began.setdefault(log.add(o), o))  # type: ignore[misc]
        elif what in ("catch up", "turn"):
            log.catch_up(number, may_switch=what == "turn")
    for subscription, offset in began.items():
        seen = log.seen[subscription]
        assert seen == list(range(offset, offset + len(seen)))
        # Where it would go on after a restart is what it sees next, or what it begins with.
        assert log.topic.offsets(subscription)["0"] == offset + len(seen)
    for _ in range(200):
        log.catch_up(50, may_switch=True)
        log.live(50)
    for subscription, offset in began.items():
        assert log.seen[subscription] == list(range(offset, log.end)), "it comes to the end"
        assert subscription not in log.partition.behind


def test_live_consumer_begins_at_the_end_when_nobody_else_reads() -> None:
    log = Log()
    log.end = 1_000
    log.add(10)
    log.end = 5_000
    log.add(4_000)

    assert log.partition.live == 5_000
    assert log.offsets_behind() == [10, 4_000]


def test_long_way_holds_up_no_short_one_nor_the_other_way_round() -> None:
    log = Log()
    log.end = 1_000_000
    far, near = log.add(0), log.add(999_000)
    starts = []
    for _ in range(4):
        starts.append(log.partition.next_start(may_switch=True))
        log.catch_up(100, may_switch=False)

    assert far in log.partition.behind
    assert near in log.partition.behind
    assert {one < 999_000 for one in starts if one is not None} == {True, False}


def test_offsets_of_a_match_count_what_is_stored_with_it_and_nothing_else() -> None:
    log = Log()
    log.end = 100
    live, behind = log.add(100), log.add(20)
    log.end = 110
    log.partition.live = 105  # found, and not stored yet
    covered = log.partition.close_groups(20, 50)

    assert log.topic.offsets(live) == {"0": 100}
    assert log.topic.offsets(live, live={0: 105}) == {"0": 105}
    assert log.topic.offsets(behind, live={0: 105}) == {"0": 20}
    assert log.topic.offsets(behind, covered={0: (covered, 50)}) == {"0": 50}
    assert log.topic.offsets(live, covered={0: (covered, 50)}) == {"0": 100}


def test_met_leaves_out_who_wants_nothing_so_old() -> None:
    topic: Topic[BaseSubscription] = Topic("t", "kafka:c/t")
    old, new = (BaseSubscription([KafkaEvent("t", match={"n": 1})], since) for since in (NOW - 60, NOW))
    for subscription in (old, new):
        topic.add(subscription, {0: (0, 0)})
    event = kafka_event(
        topic.source,
        topic="t",
        partition=0,
        offset=0,
        timestamp=int((NOW - 30) * 1_000),
        key=None,
        value=b'{"n": 1}',
        headers=(),
        received_at=NOW,
    )

    assert topic.subscribers_of(event) == {old}


def test_search_begins_five_minutes_before_since_and_shares_the_minute() -> None:
    assert NOW * 1_000 - search_from(NOW) >= 300_000
    assert search_from(NOW) == search_from(NOW + 1)
    assert all(
        later - earlier in (0, 60_000)
        for earlier, later in pairwise(search_from(NOW + n) for n in range(300))
    )
    assert search_from(10.0) == 0


@pytest.mark.parametrize(
    ("bounds", "begins"),
    [
        (Bounds(0, 50), 50),  # nothing is so new: at the end that was read before the search
        (Bounds(0, 50, (20, 0)), 20),
        (Bounds(0, 50, (60, 0)), 50),  # it came while the search went on
        (Bounds(30, 50, (20, 0)), 30),
        (Bounds(50, 50), 50),
    ],
)
def test_reading_begins_at_the_first_record_that_may_concern_it(bounds: Bounds, begins: int) -> None:
    assert first_offset(NOW, bounds) == begins


@pytest.mark.parametrize(
    ("bounds", "since", "deleted"),
    [
        (Bounds(0, 50, (0, int(NOW * 1_000))), NOW - 60, False),  # nothing was ever deleted
        (Bounds(30, 50, (30, int(NOW * 1_000))), NOW - 60, True),
        (
            Bounds(30, 50, (30, int(NOW * 1_000) - 90_000)),
            NOW - 60,
            False,
        ),  # what is left is older than since
        (Bounds(30, 50, (40, int(NOW * 1_000))), NOW - 60, False),
        (Bounds(30, 50), NOW - 60, False),
        (Bounds(50, 50), NOW - 60, False),  # an idle topic
        (Bounds(50, 50), NOW - 86_400, True),
    ],
)
def test_deleted_records_are_suspected_where_they_may_have_mattered(
    bounds: Bounds, since: float, deleted: bool
) -> None:
    assert may_be_deleted(since, bounds, NOW) is deleted
