"""A throttle grants its slots in order and loses none, whether a request is withdrawn or was just granted."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any

from deferrable_ops.throttle import Throttle


async def test_slots_are_granted_up_to_the_limit_in_the_order_of_requests() -> None:
    throttle = Throttle(2)
    with ExitStack() as third_and_fourth, ExitStack() as second, ExitStack() as first:
        granted = [first.enter_context(throttle.slot()), second.enter_context(throttle.slot())]
        granted += [third_and_fourth.enter_context(throttle.slot()) for _ in range(2)]
        assert [one.done() for one in granted] == [True, True, False, False]
        second.close()
        assert [one.done() for one in granted] == [True, True, True, False]
        first.close()
        assert all(one.done() for one in granted)


async def test_withdrawn_request_grants_no_slot_to_another() -> None:
    throttle = Throttle(1)
    with ExitStack() as last:
        with throttle.slot():
            with throttle.slot():
                granted = last.enter_context(throttle.slot())
            assert not granted.done()
        assert granted.done()


async def test_task_that_is_cancelled_while_it_waits_withdraws_its_request() -> None:
    throttle = Throttle(1)
    with ExitStack() as last:
        with throttle.slot():
            waiting = await _started(_use_slot(throttle))
            granted = last.enter_context(throttle.slot())
            waiting.cancel()
            await asyncio.wait([waiting])
            assert not granted.done()
        assert granted.done()


async def test_task_that_is_cancelled_just_after_its_grant_releases_the_slot() -> None:
    throttle = Throttle(1)
    with throttle.slot():
        waiting = await _started(_use_slot(throttle))
    # It has not run since its slot was granted.
    waiting.cancel()
    with throttle.slot() as granted:
        assert not granted.done()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert granted.done()


async def test_task_that_fails_with_a_slot_releases_it() -> None:
    throttle = Throttle(1)
    task = asyncio.create_task(_use_slot(throttle, raising=ValueError("no")))
    await asyncio.wait([task])
    assert isinstance(task.exception(), ValueError)
    with throttle.slot() as granted:
        assert granted.done()


def test_each_event_loop_has_its_own_slots() -> None:
    throttle = Throttle(1)

    async def is_granted_at_once() -> bool:
        with throttle.slot() as granted:
            return granted.done()

    async def beside_another_loop() -> tuple[bool, bool]:
        with throttle.slot() as granted:
            return granted.done(), await asyncio.to_thread(asyncio.run, is_granted_at_once())

    assert asyncio.run(beside_another_loop()) == (True, True)


async def _use_slot(throttle: Throttle, raising: Exception | None = None) -> None:
    with throttle.slot() as granted:
        await granted
        if raising is not None:
            raise raising


async def _started(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task
