from __future__ import annotations

import asyncio

import pytest
from contract.support import new_wait, register, send

from deferrable_ops.inbox import Inbox, WaitState
from deferrable_ops.inbox.waits.callbacks import Verb
from deferrable_ops.outcome import Failure, Outcome, Skip, Success


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Success({"rows": [1, None, "ü\u0000\ud800"]}), WaitState.SUCCESS),
        (Failure("no", retryable=False), WaitState.FAILED),
        (Skip("not needed"), WaitState.SKIPPED),
    ],
)
async def test_outcome_is_stored_unchanged(inbox: Inbox, outcome: Outcome, state: WaitState) -> None:
    wait = await register(inbox)
    settled = await inbox.waits.settle(wait.id, outcome)
    assert (settled.state, settled.outcome) == (state, outcome)
    assert await inbox.waits.get(wait.id) == settled


async def test_wait_settles_once(inbox: Inbox) -> None:
    wait = await register(inbox)
    first = await inbox.waits.settle(wait.id, Success(1))
    assert await inbox.waits.settle(wait.id, Failure("late")) == first


async def test_first_of_concurrent_settlements_wins(two: tuple[Inbox, Inbox]) -> None:
    wait = await register(two[0])
    settled = await asyncio.gather(*(two[i % 2].waits.settle(wait.id, Success(i)) for i in range(10)))
    assert {one.outcome for one in settled} == {(await two[0].waits.get(wait.id)).outcome}


async def test_killed_waits_stay_killed(inbox: Inbox) -> None:
    waits = [await register(inbox) for _ in range(3)]
    await inbox.waits.settle(waits[0].id, Success(1))
    await inbox.waits.kill([wait.id for wait in waits])
    states = [(await inbox.waits.get(wait.id)).state for wait in waits]
    assert states == [WaitState.SUCCESS, WaitState.KILLED, WaitState.KILLED]
    assert (await inbox.waits.settle(waits[1].id, Success(1))).outcome is None
    assert (await send(inbox, waits[1].id, 1)).status == 410


async def test_killing_many_waits_kills_each(inbox: Inbox) -> None:
    waits = await asyncio.gather(*(inbox.waits.register(new_wait()) for _ in range(1100)))
    await inbox.waits.kill([wait.id for wait in waits])
    assert {wait.state for wait in await inbox.waits.get_many([wait.id for wait in waits])} == {
        WaitState.KILLED
    }


async def test_expired_wait_gets_its_features_outcome_once(inbox: Inbox) -> None:
    wait = await register(inbox, late=True)
    await inbox.waits.expire(None)
    assert (await inbox.waits.get(wait.id)).outcome is None
    settled = await inbox.waits.settle(wait.id, Failure("nothing came"))
    assert (settled.state, settled.outcome) == (WaitState.EXPIRED, Failure("nothing came"))
    assert (await inbox.waits.settle(wait.id, Success(1))).outcome == Failure("nothing came")


async def test_concurrent_callbacks_kills_and_deadlines_agree_on_one_end(two: tuple[Inbox, Inbox]) -> None:
    # On Postgres these lock the same rows from several connections: none may be lost to a deadlock.
    waits = await asyncio.gather(*(two[0].waits.register(new_wait(late=i % 3 == 0)) for i in range(300)))
    ids = [wait.id for wait in waits]
    receipts, *_ = await asyncio.gather(
        asyncio.gather(*(send(two[0], wait_id, wait_id, Verb.SUCCESS) for wait_id in reversed(ids))),
        two[1].waits.kill(ids[::2]),
        two[1].waits.expire(None),
        two[0].waits.expire(None),
    )
    found = {wait.id: wait for wait in await two[1].waits.get_many(ids)}
    for wait_id, receipt in zip(reversed(ids), receipts, strict=True):
        accepted = receipt.status == 200
        assert accepted == (found[wait_id].state is WaitState.SUCCESS), (receipt, found[wait_id])
        assert found[wait_id].state is not WaitState.WAITING


async def test_progress_is_kept_for_the_next_run_of_the_trigger(two: tuple[Inbox, Inbox]) -> None:
    wait = await register(two[0])
    await asyncio.gather(*(two[0].waits.save_progress(wait.id, {"seen": seen}) for seen in range(5)))
    assert (await two[1].waits.register(new_wait(wait.attempt))).progress == {"seen": 4}
    await two[0].waits.settle(wait.id, Success(1))
    await two[0].waits.save_progress(wait.id, {"seen": 5})
    assert (await two[0].waits.get(wait.id)).progress == {"seen": 4}
