"""What wakes a wait, and which events still count at its deadline."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from unit.triggers.events.support import post
from unit.triggers.support import eventually

from deferrable_ops.events import ChannelEvent
from deferrable_ops.events.condition_language import parse_condition
from deferrable_ops.events.received import ReceivedEvents
from deferrable_ops.events.specifications import Specification
from deferrable_ops.exceptions import KafkaRefused
from deferrable_ops.inbox import Inbox, Wait
from deferrable_ops.inbox.watcher import Subscription
from deferrable_ops.testing import memory_inbox
from deferrable_ops.triggers.events.collector import EventCollector


@pytest.fixture
async def inbox() -> AsyncIterator[Inbox]:
    async with memory_inbox() as inbox:
        yield inbox


@pytest.fixture
def changes() -> Subscription:
    """A subscription to a wait that does not change."""
    return Subscription({}, "wait")


def collector_for(changes: Subscription, *channels: str) -> EventCollector:
    specifications: dict[str, Specification] = {channel: ChannelEvent(channel) for channel in channels}
    received = ReceivedEvents(parse_condition(None, channels), channels)
    return EventCollector(specifications, received, since=-math.inf, latest=math.inf, changes=changes)


async def next_unless_woken(changes: Subscription) -> Wait | None:
    await changes.next_change()
    return changes.take()


async def test_event_wakes_the_wait_once(inbox: Inbox, changes: Subscription) -> None:
    collector = collector_for(changes, "orders", "payments")
    with collector.follow(inbox.feed):
        await post(inbox, "orders")
        async with asyncio.timeout(20):
            assert await next_unless_woken(changes) is None
        assert await collector.collect(inbox.events)
        sleeping = asyncio.create_task(next_unless_woken(changes))
        await asyncio.wait([sleeping], timeout=0.1)
        assert not sleeping.done()
        await post(inbox, "payments")
        assert await asyncio.wait_for(sleeping, 20) is None
        assert await collector.collect(inbox.events)
    assert collector.received.complete


@pytest.mark.parametrize(
    ("problem", "details"), [("warn", ("trouble",)), ("fail", (KafkaRefused("trouble"), True))]
)
async def test_problem_of_a_source_wakes_the_wait(
    changes: Subscription, problem: str, details: tuple[object, ...]
) -> None:
    getattr(collector_for(changes, "orders"), problem)(*details)
    async with asyncio.timeout(20):
        assert await next_unless_woken(changes) is None


async def test_delivered_but_uncounted_event_counts_at_the_deadline(
    inbox: Inbox, changes: Subscription
) -> None:
    collector = collector_for(changes, "orders", "payments")
    with collector.follow(inbox.feed) as follower:
        await post(inbox, "orders")
        await post(inbox, "payments")
        await eventually(lambda: follower.has_some and (follower.position or 0) >= 2, "both events")
        await collector.drain(inbox.events, "wait")
    assert collector.received.complete


async def test_more_than_one_page_counts_at_the_deadline(inbox: Inbox, changes: Subscription) -> None:
    collector = collector_for(changes, "orders", "payments")
    for _ in range(450):
        await post(inbox, "orders")
    await post(inbox, "payments")
    await collector.drain(inbox.events, "wait")
    assert collector.received.complete
    assert collector.received.progress()["come"] == {"orders": 450, "payments": 1}


async def test_warnings_are_returned_once(changes: Subscription) -> None:
    collector: Any = collector_for(changes, "orders")
    collector.warn("one")
    collector.warn("two")
    assert collector.take_warnings() == ("one", "two")
    assert collector.take_warnings() == ()
