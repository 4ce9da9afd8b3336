"""What wakes a wait, and what its deadline still lets it take."""

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
from deferrable_ops.events.gathering import Gathering
from deferrable_ops.events.specifications import Specification
from deferrable_ops.inbox import Inbox, Wait
from deferrable_ops.inbox.watcher import Subscription
from deferrable_ops.testing import memory_inbox
from deferrable_ops.triggers.events.intake import Intake


@pytest.fixture
async def inbox() -> AsyncIterator[Inbox]:
    async with memory_inbox() as inbox:
        yield inbox


@pytest.fixture
def changes() -> Subscription:
    """The changes of a wait that does not change."""
    return Subscription({}, "wait")


def intake_for(changes: Subscription, *channels: str) -> Intake:
    specifications: dict[str, Specification] = {channel: ChannelEvent(channel) for channel in channels}
    gathering = Gathering(parse_condition(None, channels), channels)
    return Intake(specifications, gathering, since=-math.inf, latest=math.inf, changes=changes)


async def next_unless_woken(changes: Subscription) -> Wait | None:
    await changes.next_change()
    return changes.take()


async def test_event_wakes_once_and_not_again_until_there_is_another(
    inbox: Inbox, changes: Subscription
) -> None:
    intake = intake_for(changes, "orders", "payments")
    with intake.follow(inbox.feed):
        await post(inbox, "orders")
        async with asyncio.timeout(20):
            assert await next_unless_woken(changes) is None
        assert await intake.take_what_came(inbox.events)
        sleeping = asyncio.create_task(next_unless_woken(changes))
        await asyncio.wait([sleeping], timeout=0.1)
        assert not sleeping.done()
        await post(inbox, "payments")
        assert await asyncio.wait_for(sleeping, 20) is None
        assert await intake.take_what_came(inbox.events)
    assert intake.gathering.complete


@pytest.mark.parametrize("say", ["warn", "fail"])
async def test_what_an_upstream_says_wakes(changes: Subscription, say: str) -> None:
    getattr(intake_for(changes, "orders"), say)("trouble")
    async with asyncio.timeout(20):
        assert await next_unless_woken(changes) is None


async def test_what_was_handed_over_and_not_yet_looked_at_counts_at_the_deadline(
    inbox: Inbox, changes: Subscription
) -> None:
    intake = intake_for(changes, "orders", "payments")
    with intake.follow(inbox.feed) as follower:
        await post(inbox, "orders")
        await post(inbox, "payments")
        await eventually(lambda: follower.has_some and (follower.position or 0) >= 2, "both events")
        await intake.take_the_rest(inbox.events, "wait")
    assert intake.gathering.complete


async def test_more_than_a_page_is_taken_at_the_deadline(inbox: Inbox, changes: Subscription) -> None:
    intake = intake_for(changes, "orders", "payments")
    for _ in range(450):
        await post(inbox, "orders")
    await post(inbox, "payments")
    await intake.take_the_rest(inbox.events, "wait")
    assert intake.gathering.complete
    assert intake.gathering.progress()["come"] == {"orders": 450, "payments": 1}


async def test_warnings_are_handed_over_once(changes: Subscription) -> None:
    intake: Any = intake_for(changes, "orders")
    intake.warn("one")
    intake.warn("two")
    assert intake.take_warnings() == ("one", "two")
    assert intake.take_warnings() == ()
