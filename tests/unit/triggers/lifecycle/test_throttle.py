"""So many at once, in their order, and no turn lost: neither one that is given up nor one that has just begun."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any

from deferrable_ops.triggers.lifecycle.throttle import Turns


async def test_so_many_at_once_in_their_order() -> None:
    turns = Turns(2)
    with ExitStack() as third_and_fourth, ExitStack() as second, ExitStack() as first:
        begin = [first.enter_context(turns.turn()), second.enter_context(turns.turn())]
        begin += [third_and_fourth.enter_context(turns.turn()) for _ in range(2)]
        assert [one.done() for one in begin] == [True, True, False, False]
        second.close()
        assert [one.done() for one in begin] == [True, True, True, False]
        first.close()
        assert all(one.done() for one in begin)


async def test_turn_that_is_given_up_before_it_began_lets_nobody_in() -> None:
    turns = Turns(1)
    with ExitStack() as last:
        with turns.turn():
            with turns.turn():
                begins = last.enter_context(turns.turn())
            assert not begins.done()
        assert begins.done()


async def test_who_is_cancelled_while_waiting_gives_the_turn_up() -> None:
    turns = Turns(1)
    with ExitStack() as last:
        with turns.turn():
            waiting = await _started(_take_a_turn(turns))
            begins = last.enter_context(turns.turn())
            waiting.cancel()
            await asyncio.wait([waiting])
            assert not begins.done()
        assert begins.done()


async def test_who_is_cancelled_as_the_turn_begins_hands_it_on() -> None:
    turns = Turns(1)
    with turns.turn():
        waiting = await _started(_take_a_turn(turns))
    waiting.cancel()  # it has not run since its turn began
    with turns.turn() as begins:
        assert not begins.done()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert begins.done()


async def test_who_fails_during_a_turn_ends_it() -> None:
    turns = Turns(1)
    task = asyncio.create_task(_take_a_turn(turns, raising=ValueError("no")))
    await asyncio.wait([task])
    assert isinstance(task.exception(), ValueError)
    with turns.turn() as begins:
        assert begins.done()


def test_each_event_loop_has_turns_of_its_own() -> None:
    turns = Turns(1)

    async def begins_at_once() -> bool:
        with turns.turn() as begins:
            return begins.done()

    async def beside_another_loop() -> tuple[bool, bool]:
        with turns.turn() as begins:
            return begins.done(), await asyncio.to_thread(asyncio.run, begins_at_once())

    assert asyncio.run(beside_another_loop()) == (True, True)


async def _take_a_turn(turns: Turns, raising: Exception | None = None) -> None:
    with turns.turn() as begins:
        await begins
        if raising is not None:
            raise raising


async def _started(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task
