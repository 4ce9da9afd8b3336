"""What wakes a wait, and what its deadline still lets it take."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from unit.triggers.dataflow_support import eventually
from unit.triggers.events_support import post

from deferrable_ops.events import ChannelEvent
from deferrable_ops.events.condition_language import parse_condition
from deferrable_ops.events.gathering import Gathering
from deferrable_ops.events.specifications import Specification
from deferrable_ops.inbox import Inbox
from deferrable_ops.outcome import Failure, Outcome, Success
from deferrable_ops.testing import memory_inbox
from deferrable_ops.triggers.events_intake import Intake

LATE = Failure("late")


@pytest.fixture
async def inbox() -> AsyncIterator[Inbox]:
    async with memory_inbox() as inbox:
        yield inbox


def intake_for(*channels: str) -> Intake:
    specifications: dict[str, Specification] = {channel: ChannelEvent(channel) for channel in channels}
    gathering = Gathering(parse_condition(None, channels), channels)
    return Intake(specifications, gathering, since=-math.inf, latest=math.inf)


async def never() -> Outcome:
    await asyncio.Event().wait()
    raise AssertionError


async def test_event_wakes_once_and_not_again_until_there_is_another(inbox: Inbox) -> None:
    intake = intake_for("orders", "payments")
    with intake.follow(inbox.feed):
        await post(inbox, "orders")
        async with asyncio.timeout(20):
            assert await intake.unless_called(never(), None) is None
        assert await intake.take_what_came()
        sleeping = asyncio.create_task(intake.unless_called(never(), None))
        await asyncio.wait([sleeping], timeout=0.1)
        assert not sleeping.done()
        await post(inbox, "payments")
        assert await asyncio.wait_for(sleeping, 20) is None
        assert await intake.take_what_came()
    assert intake.gathering.complete


async def test_time_that_passes_wakes_without_an_event(inbox: Inbox) -> None:
    intake = intake_for("orders")
    assert await intake.unless_called(never(), 0.01) is None
    assert not await intake.take_what_came()


async def test_end_that_comes_first_is_the_end(inbox: Inbox) -> None:
    async def ends() -> Outcome:
        return Success(1)

    assert await intake_for("orders").unless_called(ends(), None) == Success(1)


async def test_timeout_of_something_else_is_not_taken_for_a_call(inbox: Inbox) -> None:
    async def fails() -> Outcome:
        raise TimeoutError("the database")

    with pytest.raises(TimeoutError, match="the database"):
        await intake_for("orders").unless_called(fails(), 60.0)


async def test_cancelled_wait_is_cancelled_and_not_called(inbox: Inbox) -> None:
    waiting = asyncio.create_task(intake_for("orders").unless_called(never(), None))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_what_was_handed_over_and_not_yet_looked_at_counts_at_the_deadline(inbox: Inbox) -> None:
    intake = intake_for("orders", "payments")
    with intake.follow(inbox.feed) as follower:
        await post(inbox, "orders")
        await post(inbox, "payments")
        await eventually(lambda: follower.has_some and (follower.position or 0) >= 2, "both events")
        await intake.take_the_rest(inbox.events)
    assert intake.gathering.complete


async def test_nothing_interrupts_the_last_look_of_the_deadline(inbox: Inbox) -> None:
    intake = intake_for("orders")

    async def slow_newest() -> int:
        await post(inbox, "orders")  # calls
        await asyncio.sleep(0.2)  # longer than the time after which something was to be told
        return await inbox.events.newest()

    async def expired() -> Outcome:
        slow: Any = SimpleNamespace(newest=slow_newest, read=inbox.events.read)
        await intake.take_the_rest(slow)
        return LATE

    with intake.follow(inbox.feed):
        assert await intake.unless_called(expired(), 0.05) == LATE


async def test_more_than_a_page_is_taken_at_the_deadline(inbox: Inbox) -> None:
    intake = intake_for("orders", "payments")
    for _ in range(450):
        await post(inbox, "orders")
    await post(inbox, "payments")
    await intake.take_the_rest(inbox.events)
    assert intake.gathering.complete
    assert intake.gathering.progress()["come"] == {"orders": 450, "payments": 1}


async def test_warnings_are_handed_over_once() -> None:
    intake: Any = intake_for("orders")
    intake.warn("one")
    intake.warn("two")
    assert intake.take_warnings() == ("one", "two")
    assert intake.take_warnings() == ()
