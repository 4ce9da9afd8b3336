"""What completes the calls that wait for changes of a wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deferrable_ops.inbox import Wait
from deferrable_ops.inbox.watcher import Subscription

CHANGED: Any = "the wait's row"
AGAIN: Any = "the wait's row after another change"


@pytest.fixture
def changes() -> Subscription:
    return Subscription({}, "wait")


async def next_unless_woken(changes: Subscription) -> Wait | None:
    await changes.next_change()
    return changes.take()


async def sleeping(sleep: Any) -> asyncio.Task[Any]:
    """Start the call, and return its task while it waits."""
    task = asyncio.ensure_future(sleep)
    await asyncio.wait([task], timeout=0.02)
    assert not task.done()
    return task


async def test_wake_completes_next_change_without_a_change(changes: Subscription) -> None:
    task = await sleeping(next_unless_woken(changes))
    changes.wake()
    changes.wake()
    assert await asyncio.wait_for(task, 20) is None
    (await sleeping(next_unless_woken(changes))).cancel()


async def test_wake_before_next_change_is_not_lost(changes: Subscription) -> None:
    changes.wake()
    assert await asyncio.wait_for(next_unless_woken(changes), 20) is None


async def test_change_is_delivered_despite_a_wake(changes: Subscription) -> None:
    for events in (
        (lambda: changes.deliver(CHANGED), changes.wake),
        (changes.wake, lambda: changes.deliver(CHANGED)),
    ):
        task = await sleeping(next_unless_woken(changes))
        for happen in events:
            happen()
        assert await asyncio.wait_for(task, 20) is CHANGED
    changes.deliver(CHANGED)
    changes.deliver(AGAIN)
    assert await asyncio.wait_for(next_unless_woken(changes), 20) is AGAIN


async def test_wake_does_not_complete_next(changes: Subscription) -> None:
    task = await sleeping(changes.next())
    changes.wake()
    await asyncio.wait([task], timeout=0.02)
    assert not task.done()
    changes.deliver(CHANGED)
    assert await asyncio.wait_for(task, 20) is CHANGED


async def test_change_after_a_cancelled_call_is_delivered(changes: Subscription) -> None:
    for sleep in (Subscription.next, next_unless_woken):
        task = await sleeping(sleep(changes))
        task.cancel()
        await asyncio.wait([task])
        changes.deliver(CHANGED)
        assert await asyncio.wait_for(sleep(changes), 20) is CHANGED
