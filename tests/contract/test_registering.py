from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from contract.support import eventually, new_attempt, new_wait, register, send

from deferrable_ops.exceptions import UnknownWait
from deferrable_ops.inbox import Inbox, WaitState
from deferrable_ops.outcome import Success


async def test_registering_again_returns_the_same_wait(inbox: Inbox) -> None:
    attempt = new_attempt()
    first = await register(inbox, attempt, timeout=100)
    again = await register(inbox, attempt, timeout=9999)
    assert again == first
    assert first.attempt == attempt
    assert first.id == attempt.wait_id


async def test_another_try_number_is_another_wait(inbox: Inbox) -> None:
    attempt = new_attempt()
    second = await register(inbox, replace(attempt, try_number=2))
    assert second.id != (await register(inbox, attempt)).id


async def test_deadline_uses_the_database_clock(inbox: Inbox) -> None:
    before = await inbox.database.now()
    wait = await register(inbox, timeout=100)
    assert before + 100 <= wait.deadline <= await inbox.database.now() + 100


async def test_deadline_is_never_later_than_airflows_own(inbox: Inbox) -> None:
    latest = await inbox.database.now() + 10
    assert (await register(inbox, timeout=100, latest_deadline=latest)).deadline == latest
    assert (await register(inbox, timeout=5, latest_deadline=latest)).deadline < latest


async def test_wait_is_new_only_at_its_first_registration(inbox: Inbox) -> None:
    attempt = new_attempt()
    first = await register(inbox, attempt)
    again = await register(inbox, attempt)
    assert (first.is_new, again.is_new) == (True, False)
    assert not (await inbox.waits.get(first.id)).is_new


async def test_many_concurrent_registrations_all_succeed(inbox: Inbox) -> None:
    attempts = [new_attempt() for _ in range(1200)]
    registered = await asyncio.gather(*(inbox.waits.register(new_wait(attempt)) for attempt in attempts))
    assert [wait.attempt for wait in registered] == attempts
    found = await inbox.waits.get_many([wait.id for wait in registered])
    assert {wait.id for wait in found} == {attempt.wait_id for attempt in attempts}


async def test_one_attempt_registered_twice_in_one_batch_is_one_wait(inbox: Inbox) -> None:
    attempt = new_attempt()
    first, second = await asyncio.gather(*(inbox.waits.register(new_wait(attempt)) for _ in range(2)))
    assert first == second


async def test_wait_that_was_not_registered_is_unknown(inbox: Inbox) -> None:
    for ask in (inbox.waits.get, lambda wait_id: inbox.waits.settle(wait_id, Success())):
        with pytest.raises(UnknownWait, match="has never seen the wait"):
            await ask(new_attempt().wait_id)


async def test_callback_between_two_runs_of_a_trigger_is_kept(inbox: Inbox) -> None:
    attempt = new_attempt()
    wait = await register(inbox, attempt)
    await send(inbox, wait.id, {"rows": 3})
    again = await register(inbox, attempt)
    assert (again.state, again.outcome) == (WaitState.SUCCESS, Success({"rows": 3}))


async def test_cancelled_caller_does_not_affect_others(inbox: Inbox) -> None:
    calls = [asyncio.create_task(inbox.waits.register(new_wait())) for _ in range(50)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    for call in calls[1::2]:
        assert call.result().state is WaitState.WAITING
    await register(inbox)


async def test_concurrent_registrations_of_the_same_waits_return_the_same_rows(
    two: tuple[Inbox, Inbox],
) -> None:
    attempts = [new_attempt() for _ in range(300)]
    one, other = await asyncio.gather(
        asyncio.gather(*(two[0].waits.register(new_wait(attempt)) for attempt in attempts)),
        asyncio.gather(*(two[1].waits.register(new_wait(attempt)) for attempt in reversed(attempts))),
    )
    assert one == other[::-1]


async def test_pages_of_waits_are_ordered_and_complete(inbox: Inbox) -> None:
    ids = sorted([(await register(inbox)).id for _ in range(5)])
    first = await inbox.waits.find(limit=3)
    rest = await inbox.waits.find(limit=3, after=first[-1].id)
    assert [wait.id for wait in first + rest] == ids


async def test_close_completes_every_pending_call(shared_url: str) -> None:
    inbox = await Inbox.open(shared_url, retry_timeout=20)
    calls = [asyncio.create_task(inbox.waits.register(new_wait())) for _ in range(700)]
    await asyncio.sleep(0)
    await inbox.close()

    async def all_answered() -> bool:
        return all(call.done() for call in calls)

    await eventually(all_answered, "an answer to every caller")
    assert all(call.result().state is WaitState.WAITING for call in calls)
