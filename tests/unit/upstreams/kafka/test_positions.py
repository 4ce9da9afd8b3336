"""Each subscription reads every record from its start once and in order, from either consumer."""

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
    """A partition with its two consumers, which the test advances."""

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
            # Paused.
            return
        end = min(self.partition.live + records, self.end)
        for offset in range(self.partition.live, end):
            for subscription in self.topic.subscriptions:
                if self.partition.is_live(subscription, offset):
                    self.seen[subscription].append(offset)
        self.partition.live = self.partition.stored = end

    def offsets_behind(self) -> list[int]:
        return sorted(group.offset for group in self.partition.behind.values())

    def catch_up(
        self, records: int, may_switch: bool = False, during_store: Callable[[], object] | None = None
    ) -> None:
        if not self.topic.subscriptions:
            return
        begin = self.partition.choose_next_start(may_switch)
        if begin is None:
            self.partition.catch_up = None
            return
        assert begin in self.offsets_behind(), "a subscription is at this offset"
        end = min(begin + records, self.end)
        covered = self.partition.close_groups(begin, end)
        for offset in range(begin, end):
            for subscription in self.topic.subscriptions:
                if self.partition.is_covered(subscription, begin, offset):
                    self.seen[subscription].append(offset)
        # While the matches are being stored.
        if during_store is not None:
            during_store()
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


@settings(max_examples=200)
@given(steps)
def test_subscription_reads_every_record_once_and_in_order(steps: list[tuple[str, int]]) -> None:
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
            log.catch_up(5, during_store=lambda o=offset: began.setdefault(log.add(o), o))  # type: ignore[misc]
        elif what in ("catch up", "turn"):
            log.catch_up(number, may_switch=what == "turn")
    for subscription, offset in began.items():
        seen = log.seen[subscription]
        assert seen == list(range(offset, offset + len(seen)))
        # It would resume at the next record.
        assert log.topic.offsets(subscription)["0"] == offset + len(seen)
    for _ in range(200):
        log.catch_up(50, may_switch=True)
        log.live(50)
    for subscription, offset in began.items():
        assert log.seen[subscription] == list(range(offset, log.end)), "it reaches the end"
        assert subscription not in log.partition.behind


def test_live_consumer_starts_at_the_end_without_live_subscriptions() -> None:
    log = Log()
    log.end = 1_000
    log.add(10)
    log.end = 5_000
    log.add(4_000)

    assert log.partition.live == 5_000
    assert log.offsets_behind() == [10, 4_000]


def test_catch_up_alternates_between_far_and_near_offsets() -> None:
    log = Log()
    log.end = 1_000_000
    far, near = log.add(0), log.add(999_000)
    starts = []
    for _ in range(4):
        starts.append(log.partition.choose_next_start(may_switch=True))
        log.catch_up(100, may_switch=False)

    assert far in log.partition.behind
    assert near in log.partition.behind
    assert {one < 999_000 for one in starts if one is not None} == {True, False}


def test_resume_offsets_cover_only_what_is_stored_with_them() -> None:
    log = Log()
    log.end = 100
    live, behind = log.add(100), log.add(20)
    log.end = 110
    # Read, but not stored yet.
    log.partition.live = 105
    covered = log.partition.close_groups(20, 50)

    assert log.topic.offsets(live) == {"0": 100}
    assert log.topic.offsets(live, live={0: 105}) == {"0": 105}
    assert log.topic.offsets(behind, live={0: 105}) == {"0": 20}
    assert log.topic.offsets(behind, covered={0: (covered, 50)}) == {"0": 50}
    assert log.topic.offsets(live, covered={0: (covered, 50)}) == {"0": 100}


def test_event_older_than_since_does_not_match() -> None:
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


def test_search_starts_five_minutes_before_since_and_is_shared_within_a_minute() -> None:
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
        (Bounds(0, 50), 50),  # no record is new enough: start at the end
        (Bounds(0, 50, (20, 0)), 20),
        (Bounds(0, 50, (60, 0)), 50),  # it arrived during the search
        (Bounds(30, 50, (20, 0)), 30),
        (Bounds(50, 50), 50),
    ],
)
def test_subscription_starts_at_the_first_record_that_may_match(bounds: Bounds, begins: int) -> None:
    assert first_offset(NOW, bounds) == begins


@pytest.mark.parametrize(
    ("bounds", "since", "deleted"),
    [
        (Bounds(0, 50, (0, int(NOW * 1_000))), NOW - 60, False),  # no record was deleted
        (Bounds(30, 50, (30, int(NOW * 1_000))), NOW - 60, True),
        (
            Bounds(30, 50, (30, int(NOW * 1_000) - 90_000)),
            NOW - 60,
            False,
        ),  # the first remaining record is older than since
        (Bounds(30, 50, (40, int(NOW * 1_000))), NOW - 60, False),
        (Bounds(30, 50), NOW - 60, False),
        (Bounds(50, 50), NOW - 60, False),  # an idle topic
        (Bounds(50, 50), NOW - 86_400, True),
    ],
)
def test_deleted_records_are_suspected_only_if_they_may_have_matched(
    bounds: Bounds, since: float, deleted: bool
) -> None:
    assert may_be_deleted(since, bounds, NOW) is deleted
