"""The newest attempt of a task owns it. Two of three values decide which is the newest; any one may be wrong."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from contract.support import new_attempt, new_wait, register, send

from deferrable_ops.inbox import Inbox, WaitState

EARLY, LATE = "01900000-0000-7000-8000-000000000000", "01a00000-0000-7000-8000-000000000000"


def ids(order: str) -> tuple[str, str]:
    """Return two new task instance ids in this order."""
    tail = uuid4().hex[-12:]
    early, late = EARLY[:-12] + tail, LATE[:-12] + tail
    return {"rising": (early, late), "falling": (late, early), "same": (early, early)}[order]


@pytest.mark.parametrize(
    ("order", "tries"),
    [
        pytest.param("rising", (1, 2), id="retried or cleared"),
        pytest.param("same", (1, 2), id="retried under the same id"),
        pytest.param("falling", (1, 2), id="retried by a machine whose clock is behind"),
        pytest.param("rising", (1, 1), id="run deleted and made again"),
        pytest.param("rising", (3, 1), id="run deleted after some tries and made again"),
    ],
)
async def test_newer_attempt_supersedes_the_older(inbox: Inbox, order: str, tries: tuple[int, int]) -> None:
    (old_id, new_id), task = ids(order), uuid4().hex
    old = await register(inbox, new_attempt(task, ti_id=old_id, try_number=tries[0]))
    new = await register(inbox, new_attempt(task, ti_id=new_id, try_number=tries[1]))
    assert new.state is WaitState.WAITING
    assert (await inbox.waits.get(old.id)).state is WaitState.SUPERSEDED
    assert await inbox.waits.newer_attempt_exists(old.id)
    assert not await inbox.waits.newer_attempt_exists(new.id)


@pytest.mark.parametrize("order", ["rising", "same"])
async def test_older_attempt_that_registers_late_is_superseded_at_once(inbox: Inbox, order: str) -> None:
    (old_id, new_id), task = ids(order), uuid4().hex
    new = await register(inbox, new_attempt(task, ti_id=new_id, try_number=2))
    old = await register(inbox, new_attempt(task, ti_id=old_id, try_number=1))
    assert old.state is WaitState.SUPERSEDED
    assert (await inbox.waits.get(new.id)).state is WaitState.WAITING


@pytest.mark.parametrize("order", ["rising", "falling", "same"])
async def test_of_two_attempts_in_one_batch_the_higher_try_owns_the_task(inbox: Inbox, order: str) -> None:
    (old_id, new_id), task = ids(order), uuid4().hex
    new, old = await asyncio.gather(
        inbox.waits.register(new_wait(new_attempt(task, ti_id=new_id, try_number=2))),
        inbox.waits.register(new_wait(new_attempt(task, ti_id=old_id, try_number=1))),
    )
    assert (old.state, new.state) == (WaitState.SUPERSEDED, WaitState.WAITING)


async def test_of_two_attempts_registered_concurrently_one_owns_the_task(
    two: tuple[Inbox, Inbox],
) -> None:
    tasks = [uuid4().hex for _ in range(100)]
    pairs = [ids("rising") for _ in tasks]
    old = [
        new_wait(new_attempt(task, ti_id=pair[0], try_number=1))
        for task, pair in zip(tasks, pairs, strict=True)
    ]
    new = [
        new_wait(new_attempt(task, ti_id=pair[1], try_number=2))
        for task, pair in zip(tasks, pairs, strict=True)
    ]
    await asyncio.gather(
        *(two[0].waits.register(wait) for wait in old),
        *(two[1].waits.register(wait) for wait in reversed(new)),
    )
    olds = await two[0].waits.get_many([wait.attempt.wait_id for wait in old])
    news = await two[0].waits.get_many([wait.attempt.wait_id for wait in new])
    assert {wait.state for wait in olds} == {WaitState.SUPERSEDED}
    assert {wait.state for wait in news} == {WaitState.WAITING}


async def test_other_map_indexes_tasks_and_runs_are_not_superseded(inbox: Inbox) -> None:
    task = uuid4().hex
    base = {"ti_id": EARLY[:-12] + uuid4().hex[-12:], "try_number": 1}
    mine = await register(inbox, new_attempt(task, map_index=0, **base))
    await register(inbox, new_attempt(task, map_index=1, try_number=2))
    await register(inbox, new_attempt(task, task_id="other", map_index=0, try_number=2))
    await register(inbox, new_attempt(map_index=0, try_number=2))
    assert (await inbox.waits.get(mine.id)).state is WaitState.WAITING


async def test_settled_attempt_keeps_its_outcome(inbox: Inbox) -> None:
    (old_id, new_id), task = ids("rising"), uuid4().hex
    old = await register(inbox, new_attempt(task, ti_id=old_id))
    await send(inbox, old.id, 1)
    await register(inbox, new_attempt(task, ti_id=new_id, try_number=2))
    assert (await inbox.waits.get(old.id)).state is WaitState.SUCCESS


async def test_callback_to_a_superseded_attempt_gets_410(inbox: Inbox) -> None:
    (old_id, new_id), task = ids("rising"), uuid4().hex
    old = await register(inbox, new_attempt(task, ti_id=old_id))
    new = await register(inbox, new_attempt(task, ti_id=new_id, try_number=2))
    assert (await send(inbox, old.id, 1)).status == 410
    assert (await send(inbox, new.id, 1)).status == 200
