"""Launching is a claim with a lease: one process at a time, taken over when it expires, over once it is recorded."""

from __future__ import annotations

import asyncio
import time

import pytest
from contract.support import eventually, new_attempt, register, send
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.inbox import Inbox, Wait
from deferrable_ops.inbox.database.schema import waits
from deferrable_ops.inbox.waits.launches import LEASE, ClaimLost, Launches


@pytest.fixture
def inbox(inbox: Inbox) -> Inbox:
    inbox.launches = Launches(inbox.database, inbox.owner, acquire_interval=0.02)
    return inbox


@pytest.fixture
def two(two: tuple[Inbox, Inbox]) -> tuple[Inbox, Inbox]:
    for inbox in two:
        inbox.launches = Launches(inbox.database, inbox.owner, acquire_interval=0.02)
    return two


async def lapse(inbox: Inbox, wait: Wait) -> None:
    """Let a lease end, as when its owner was killed or paused for longer than that."""
    async with inbox.database.begin() as connection:
        await connection.execute(update(waits).where(waits.c.id == wait.id).values(launch_lease=1.0))


async def test_recorded_launch_is_not_repeated(two: tuple[Inbox, Inbox]) -> None:
    wait = await register(two[0])
    async with two[0].launches.claim(wait.id) as claim:
        assert claim is not None
        await claim.check()
        await claim.record({"status": 201})
    async with two[1].launches.claim(wait.id) as claim:
        assert claim is None
    launched = await two[1].waits.get(wait.id)
    assert launched.launch_answer == {"status": 201}
    assert launched.launched_at is not None


async def test_check_returns_until_when_a_request_may_be_sent(inbox: Inbox) -> None:
    wait = await register(inbox)
    async with inbox.launches.claim(wait.id) as claim:
        assert claim is not None
        asked_at = time.monotonic()
        until = await claim.check()
        assert asked_at < until < asked_at + LEASE
        async with inbox.database.begin() as connection:
            query = select(waits.c.launch_lease).where(waits.c.id == wait.id)
            lease = (await connection.execute(query)).scalar_one()
        assert until - time.monotonic() < lease - await inbox.database.now()


async def test_second_process_waits_while_the_first_launches(two: tuple[Inbox, Inbox]) -> None:
    wait = await register(two[0])
    launched: list[str] = []

    async def launch(inbox: Inbox, name: str) -> None:
        async with inbox.launches.claim(wait.id) as claim:
            if claim is not None:
                await claim.check()
                launched.append(name)
                await asyncio.sleep(0.1)  # the request is under way
                await claim.record(name)

    await asyncio.gather(*(launch(two[i % 2], str(i)) for i in range(6)))
    assert len(launched) == 1
    assert (await two[0].waits.get(wait.id)).launch_answer == launched[0]


async def test_released_claim_can_be_acquired_at_once(two: tuple[Inbox, Inbox]) -> None:
    wait = await register(two[0])
    with pytest.raises(OSError, match="no route"):
        async with two[0].launches.claim(wait.id):
            raise OSError("no route")
    async with asyncio.timeout(5), two[1].launches.claim(wait.id) as claim:
        assert claim is not None


async def test_expired_claim_is_taken_over_and_lost_by_its_first_owner(
    two: tuple[Inbox, Inbox],
) -> None:
    wait = await register(two[0])
    async with two[0].launches.claim(wait.id) as paused:
        assert paused is not None
        await lapse(two[0], wait)
        async with two[1].launches.claim(wait.id) as taken_over:
            assert taken_over is not None
            await taken_over.check()
            with pytest.raises(ClaimLost):
                await paused.check()
            await taken_over.record("second")
            await paused.record("first")
    assert (await two[0].waits.get(wait.id)).launch_answer == "second"


async def test_releasing_a_claim_that_was_taken_over_does_not_affect_the_new_owner(
    two: tuple[Inbox, Inbox],
) -> None:
    wait = await register(two[0])
    async with two[1].launches.claim(wait.id) as new_owner, asyncio.timeout(20):
        assert new_owner is not None
        await lapse(two[0], wait)
        async with two[0].launches.claim(wait.id) as old_owner:
            await lapse(two[0], wait)
            await new_owner.check()  # takes it back
        assert old_owner is not None
        await new_owner.check()
        with pytest.raises(ClaimLost):
            await old_owner.check()


async def test_lease_is_renewed_while_the_claim_is_held(inbox: Inbox) -> None:
    inbox.launches = Launches(inbox.database, inbox.owner, renew_interval=0.02)
    wait = await register(inbox)
    async with inbox.launches.claim(wait.id) as claim:
        assert claim is not None
        await lapse(inbox, wait)

        async def renewed() -> bool:
            return await _lease(inbox, wait) > await inbox.database.now()

        await eventually(renewed, "the lease to be renewed")


@pytest.mark.parametrize("ending", ["settled", "killed", "superseded"])
async def test_wait_that_ended_is_never_launched(inbox: Inbox, ending: str) -> None:
    attempt = new_attempt("task", ti_id=new_attempt().ti_id)
    wait = await register(inbox, attempt)
    async with inbox.launches.claim(wait.id) as claim:
        assert claim is not None
        if ending == "settled":
            await send(inbox, wait.id, 1)
        elif ending == "killed":
            await inbox.waits.kill([wait.id])
        else:
            await register(inbox, new_attempt("task", ti_id=attempt.ti_id, try_number=2))
        with pytest.raises(ClaimLost):
            await claim.check()
    async with inbox.launches.claim(wait.id) as claim:
        assert claim is None


async def test_wait_that_was_not_registered_is_never_launched(inbox: Inbox) -> None:
    async with inbox.launches.claim(new_attempt().wait_id) as claim:
        assert claim is None


async def _lease(inbox: Inbox, wait: Wait) -> float:
    async def read(connection: AsyncConnection) -> float:
        return float(
            (await connection.execute(select(waits.c.launch_lease).where(waits.c.id == wait.id))).scalar_one()
        )

    return await inbox.database.read(read)
