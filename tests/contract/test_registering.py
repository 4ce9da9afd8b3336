from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from contract.support import eventually, new_attempt, new_wait, register, send

from deferrable_ops.exceptions import UnknownWait
from deferrable_ops.inbox import Inbox, WaitState
from deferrable_ops.outcome import Success


async def test_a_wait_is_the_same_wherever_and_however_often_it_is_registered(inbox: Inbox) -> None:
    attempt = new_attempt()
    first = await register(inbox, attempt, timeout=100)
    again = await register(inbox, attempt, timeout=9999)
    assert again == first
    assert first.attempt == attempt
    assert first.id == attempt.wait_id


async def test_a_try_that_keeps_its_task_instance_id_is_another_wait(inbox: Inbox) -> None:
    attempt = new_attempt()
    second = await register(inbox, replace(attempt, try_number=2))
    assert second.id != (await register(inbox, attempt)).id


async def test_the_deadline_is_counted_by_the_clock_of_the_database(inbox: Inbox) -> None:
    before = await inbox.database.now()
    wait = await register(inbox, timeout=100)
    assert before + 100 <= wait.deadline <= await inbox.database.now() + 100


async def test_the_deadline_is_never_later_than_airflows_own(inbox: Inbox) -> None:
    latest = await inbox.database.now() + 10
    assert (await register(inbox, timeout=100, latest_deadline=latest)).deadline == latest
    assert (await register(inbox, timeout=5, latest_deadline=latest)).deadline < latest


async def test_a_wait_is_new_only_to_who_registers_it_first(inbox: Inbox) -> None:
    attempt = new_attempt()
    first = await register(inbox, attempt)
    again = await register(inbox, attempt)
    assert (first.is_new, again.is_new) == (True, False)
    assert not (await inbox.waits.get(first.id)).is_new


async def test_many_waits_that_register_at_once_are_all_registered(inbox: Inbox) -> None:
    attempts = [new_attempt() for _ in range(1200)]
    registered = await asyncio.gather(*(inbox.waits.register(new_wait(attempt)) for attempt in attempts))
    assert [wait.attempt for wait in registered] == attempts
    found = await inbox.waits.get_many([wait.id for wait in registered])
    assert {wait.id for wait in found} == {attempt.wait_id for attempt in attempts}


async def test_one_attempt_registered_twice_in_one_batch_is_one_wait(inbox: Inbox) -> None:
    attempt = new_attempt()
    first, second = await asyncio.gather(*(inbox.waits.register(new_wait(attempt)) for _ in range(2)))
    assert first == second


async def test_a_wait_that_nobody_registered_is_unknown(inbox: Inbox) -> None:
    for ask in (inbox.waits.get, lambda wait_id: inbox.waits.settle(wait_id, Success())):
        with pytest.raises(UnknownWait, match="has never seen the wait"):
            await ask(new_attempt().wait_id)


async def test_a_callback_that_comes_before_the_wait_runs_again_is_kept(inbox: Inbox) -> None:
    attempt = new_attempt()
    wait = await register(inbox, attempt)
    await send(inbox, wait.id, {"rows": 3})
    again = await register(inbox, attempt)
    assert (again.state, again.outcome) == (WaitState.SUCCESS, Success({"rows": 3}))


async def test_a_caller_who_gives_up_does_not_disturb_the_others(inbox: Inbox) -> None:
    calls = [asyncio.create_task(inbox.waits.register(new_wait())) for _ in range(50)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    for call in calls[1::2]:
        assert call.result().state is WaitState.WAITING
    await register(inbox)


async def test_processes_that_register_the_same_waits_at_once_agree(two: tuple[Inbox, Inbox]) -> None:
    attempts = [new_attempt() for _ in range(300)]
    one, other = await asyncio.gather(
        asyncio.gather(*(two[0].waits.register(new_wait(attempt)) for attempt in attempts)),
        asyncio.gather(*(two[1].waits.register(new_wait(attempt)) for attempt in reversed(attempts))),
    )
    assert one == other[::-1]


async def test_pages_of_waits_come_in_order_and_complete(inbox: Inbox) -> None:
    ids = sorted([(await register(inbox)).id for _ in range(5)])
    first = await inbox.waits.find(limit=3)
    rest = await inbox.waits.find(limit=3, after=first[-1].id)
    assert [wait.id for wait in first + rest] == ids


async def test_closing_answers_every_caller(shared_url: str) -> None:
    inbox = await Inbox.open(shared_url, retry_timeout=20)
    calls = [asyncio.create_task(inbox.waits.register(new_wait())) for _ in range(700)]
    await asyncio.sleep(0)
    await inbox.close()

    async def all_answered() -> bool:
        return all(call.done() for call in calls)

    await eventually(all_answered, "an answer to every caller")
    assert all(call.result().state is WaitState.WAITING for call in calls)
