"""Cancellation: the outside work of ended waits is stopped by one process at a time, with a limited number of tries."""

from __future__ import annotations

import asyncio
from itertools import chain

import pytest
from contract.support import new_attempt, new_wait, register, send
from sqlalchemy import update

from deferrable_ops import Failure, Success
from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.database.schema import waits

TRIGGER = b"sealed"


async def lapse(inbox: Inbox) -> None:
    """Let the lease on every cancellation end."""
    async with inbox.database.begin() as connection:
        await connection.execute(update(waits).where(waits.c.cancel == "due").values(cancel_lease=1.0))


@pytest.mark.parametrize("ending", ["killed", "superseded", "expired", "silent"])
async def test_work_of_an_abandoned_wait_is_cancelled(inbox: Inbox, ending: str) -> None:
    attempt = new_attempt("task")
    wait = await register(inbox, attempt, trigger=TRIGGER, late=ending == "expired", heartbeat_timeout=0.0)
    match ending:
        case "killed":
            await inbox.waits.kill([wait.id])
        case "superseded":
            await register(inbox, new_attempt("task", ti_id=attempt.ti_id, try_number=2))
        case "expired":
            await inbox.waits.expire(None)
        case "silent":
            await inbox.waits.expire(1.0)
    assert (await inbox.waits.get(wait.id)).cancel == "due"
    cancellation = await inbox.cancellations.claim()
    assert cancellation is not None
    assert (cancellation.wait_id, cancellation.trigger) == (wait.id, TRIGGER)
    await inbox.cancellations.mark_stopped(cancellation)
    await lapse(inbox)
    assert await inbox.cancellations.claim() is None
    assert (await inbox.waits.get(wait.id)).cancel == "done"


async def test_work_of_a_successful_wait_is_not_cancelled(inbox: Inbox) -> None:
    wait = await register(inbox, trigger=TRIGGER)
    await send(inbox, wait.id, 1)
    await inbox.waits.kill([wait.id])
    assert await inbox.cancellations.claim() is None


async def test_wait_without_work_has_no_cancellation(inbox: Inbox) -> None:
    wait = await register(inbox, trigger=None)
    await inbox.waits.kill([wait.id])
    assert await inbox.cancellations.claim() is None


async def test_each_cancellation_is_claimed_by_exactly_one_process(two: tuple[Inbox, Inbox]) -> None:
    killed = await asyncio.gather(*(two[0].waits.register(new_wait(trigger=TRIGGER)) for _ in range(20)))
    await two[0].waits.kill([wait.id for wait in killed])

    async def take_all(inbox: Inbox) -> list[str]:
        taken = []
        while (cancellation := await inbox.cancellations.claim()) is not None:
            taken.append(cancellation.wait_id)
        return taken

    taken = await asyncio.gather(*(take_all(inbox) for inbox in (*two, *two)))
    assert sorted(chain.from_iterable(taken)) == sorted(wait.id for wait in killed)


async def test_cancellation_of_a_dead_process_can_be_claimed_after_its_lease(
    two: tuple[Inbox, Inbox],
) -> None:
    wait = await register(two[0], trigger=TRIGGER)
    await two[0].waits.kill([wait.id])
    assert await two[0].cancellations.claim() is not None
    assert await two[1].cancellations.claim() is None
    await lapse(two[0])
    assert await two[1].cancellations.claim() is not None


async def test_failing_cancellation_is_tried_ten_times(inbox: Inbox) -> None:
    wait = await register(inbox, trigger=TRIGGER)
    await inbox.waits.kill([wait.id])
    again = []
    for _ in range(10):
        cancellation = await inbox.cancellations.claim(wait.id)
        assert cancellation is not None
        again.append(await inbox.cancellations.mark_failed(cancellation))
        await lapse(inbox)
    assert again == [True] * 9 + [False]
    assert await inbox.cancellations.claim() is None
    assert (await inbox.waits.get(wait.id)).cancel == "failed"


async def test_claim_for_one_wait_ignores_others(inbox: Inbox) -> None:
    killed = [await register(inbox, trigger=TRIGGER) for _ in range(2)]
    await inbox.waits.kill([wait.id for wait in killed])
    cancellation = await inbox.cancellations.claim(killed[1].id)
    assert cancellation is not None
    assert cancellation.wait_id == killed[1].id


async def test_work_is_not_cancelled_while_it_is_being_launched(two: tuple[Inbox, Inbox]) -> None:
    wait = await register(two[0], trigger=TRIGGER)
    async with two[0].launches.claim(wait.id) as claim:
        assert claim is not None
        await claim.check()
        await two[1].waits.kill([wait.id])
        assert await two[1].cancellations.claim() is None
        await claim.record("running")
        assert await two[1].cancellations.claim() is not None
    other = await register(two[0], trigger=TRIGGER)
    async with two[0].launches.claim(other.id):
        await two[1].waits.kill([other.id])
    assert await two[1].cancellations.claim() is not None


async def test_work_that_a_failure_leaves_running_is_cancelled(inbox: Inbox) -> None:
    left, over = [await register(inbox, trigger=TRIGGER) for _ in range(2)]
    assert (await inbox.waits.settle(left.id, Failure("refused"), stop_work=True)).cancel == "due"
    assert (await inbox.waits.settle(over.id, Failure("refused"))).cancel is None
    cancellation = await inbox.cancellations.claim()
    assert cancellation is not None
    assert cancellation.wait_id == left.id


async def test_first_outcome_decides_whether_work_is_cancelled(inbox: Inbox) -> None:
    wait = await register(inbox, trigger=TRIGGER)
    await inbox.waits.settle(wait.id, Success(1))
    assert (await inbox.waits.settle(wait.id, Failure("late"), stop_work=True)).cancel is None


async def test_settling_an_expired_wait_keeps_the_lease_of_its_cancellation(inbox: Inbox) -> None:
    wait = await register(inbox, trigger=TRIGGER, late=True)
    await inbox.waits.expire(None)
    assert await inbox.cancellations.claim() is not None
    await inbox.waits.settle(wait.id, Failure("too late"), stop_work=True)
    assert await inbox.cancellations.claim() is None


async def test_requeue_returns_the_other_attempts_whose_work_may_run(inbox: Inbox) -> None:
    old = new_attempt("task")
    first = await register(inbox, old, trigger=TRIGGER)
    elsewhere = await register(inbox, trigger=TRIGGER)
    await inbox.waits.kill([elsewhere.id])
    second = await register(inbox, new_attempt("task", ti_id=old.ti_id, try_number=2), trigger=TRIGGER)
    assert await inbox.cancellations.requeue_other_attempts(second.id) == [first.id]
    cancellation = await inbox.cancellations.claim(first.id)
    assert cancellation is not None
    # Claimed, but not stopped yet.
    assert await inbox.cancellations.requeue_other_attempts(second.id) == [first.id]
    await inbox.cancellations.mark_stopped(cancellation)
    assert await inbox.cancellations.requeue_other_attempts(second.id) == []


async def test_requeue_makes_failed_cancellations_due_again(
    inbox: Inbox,
) -> None:
    old = new_attempt("task")
    first = await register(inbox, old, trigger=TRIGGER)
    await inbox.waits.kill([first.id])
    for _ in range(10):
        cancellation = await inbox.cancellations.claim(first.id)
        assert cancellation is not None
        await inbox.cancellations.mark_failed(cancellation)
        await lapse(inbox)
    assert await inbox.cancellations.claim(first.id) is None
    second = await register(inbox, new_attempt("task", ti_id=old.ti_id, try_number=2), trigger=TRIGGER)
    assert await inbox.cancellations.requeue_other_attempts(second.id) == [first.id]
    again = await inbox.cancellations.claim(first.id)
    assert again is not None
    assert again.trigger == TRIGGER


async def test_outage_gets_more_tries_but_ends_a_week_after_the_wait(inbox: Inbox) -> None:
    wait = await register(inbox, trigger=TRIGGER)
    await inbox.waits.kill([wait.id])

    async def fail(*, counts: bool) -> bool:
        cancellation = await inbox.cancellations.claim()
        assert cancellation is not None
        again = await inbox.cancellations.mark_failed(cancellation, counts=counts)
        await lapse(inbox)
        return again

    assert all([await fail(counts=False) for _ in range(15)])
    assert all([await fail(counts=True) for _ in range(9)])
    async with inbox.database.begin() as connection:
        week_ago = waits.c.settled_at - 8 * 86_400
        await connection.execute(update(waits).where(waits.c.id == wait.id).values(settled_at=week_ago))
    assert not await fail(counts=False)
    assert (await inbox.waits.get(wait.id)).cancel == "failed"
