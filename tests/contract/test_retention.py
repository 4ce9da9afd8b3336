from __future__ import annotations

import asyncio
from uuid import uuid4

from contract.support import new_event, new_wait, read_all, register, send
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.database.schema import callbacks, waits
from deferrable_ops.inbox.events.event_schema import event_keys, events, source_positions
from deferrable_ops.inbox.events.events import SourcePosition


async def test_settled_waits_and_their_callbacks_are_deleted_after_their_retention(inbox: Inbox) -> None:
    settled, waiting = await register(inbox), await register(inbox)
    await send(inbox, settled.id, 1)
    assert await inbox.retention.prune(days=1) == 0
    assert await inbox.retention.prune(days=0) == 1
    assert await inbox.waits.find() == [waiting]

    async def count(connection: AsyncConnection) -> int:
        return int((await connection.execute(select(func.count()).select_from(callbacks))).scalar_one())

    assert await inbox.database.read(count) == 0


async def test_wait_with_a_due_cancellation_is_not_deleted(inbox: Inbox) -> None:
    wait = await register(inbox, trigger=b"sealed")
    await inbox.waits.kill([wait.id])
    assert await inbox.retention.prune(days=0) == 0
    cancellation = await inbox.cancellations.claim()
    assert cancellation is not None
    await inbox.cancellations.mark_stopped(cancellation)
    assert await inbox.retention.prune(days=0) == 1


async def test_many_waits_are_deleted_in_batches(inbox: Inbox) -> None:
    settled = await asyncio.gather(*(inbox.waits.register(new_wait()) for _ in range(1100)))
    await inbox.waits.kill([wait.id for wait in settled])
    assert await inbox.retention.prune(days=0) == 1100


async def test_two_processes_that_prune_concurrently_delete_each_wait_once(two: tuple[Inbox, Inbox]) -> None:
    settled = await asyncio.gather(*(two[0].waits.register(new_wait()) for _ in range(700)))
    await two[0].waits.kill([wait.id for wait in settled])
    assert sum(await asyncio.gather(*(inbox.retention.prune(days=0) for inbox in two))) == 700


async def test_lock_is_held_by_one_process_until_it_expires(two: tuple[Inbox, Inbox]) -> None:
    turns = await asyncio.gather(*(two[i % 2].database.try_lock("chore", 60) for i in range(6)))
    assert sorted(turns) == [False] * 5 + [True]
    assert await two[0].database.try_lock("another chore", 60)
    assert await two[0].database.try_lock("chore without pause", 0)
    assert await two[1].database.try_lock("chore without pause", 0)


async def test_deleted_wait_can_be_registered_again(inbox: Inbox) -> None:
    wait = await register(inbox)
    await send(inbox, wait.id, 1)
    async with inbox.database.begin() as connection:
        await connection.execute(update(waits).values(created_at=1.0, settled_at=1.0))
    assert await inbox.retention.prune(days=14) == 1
    assert (await register(inbox, wait.attempt)).outcome is None


async def test_duplicates_of_a_deleted_event_are_detected_for_another_30_days(
    inbox: Inbox,
) -> None:
    old = await inbox.events.append(new_event(key="old"))
    await _age(inbox, days=41)
    new = await inbox.events.append(new_event(key="new"))
    assert await inbox.retention.prune_events(days=42) == 0
    assert await inbox.events.kept_since() == 0
    assert await inbox.retention.prune_events(days=40) == 1
    assert [event.number for event in await read_all(inbox, "channel:orders")] == [new.number]
    assert 40 * 86_400 - 60 < await inbox.database.now() - await inbox.events.kept_since() <= 40 * 86_400 + 60
    assert (await inbox.events.append(new_event(key="old"))).number == old.number
    await _age(inbox, days=30)
    assert await inbox.retention.prune_events(days=40) == 0
    assert not (await inbox.events.append(new_event(key="old"))).is_duplicate
    assert (await inbox.events.append(new_event(key="new"))).is_duplicate


async def test_positions_of_ended_waits_are_deleted(inbox: Inbox) -> None:
    waiting, settled, killed = [await register(inbox) for _ in range(3)]
    forgotten = str(uuid4())
    ids = (waiting.id, settled.id, killed.id, forgotten)
    reached = [SourcePosition(f"kafka:{topic}", wait_id, 1) for wait_id in ids for topic in "xy"]
    await inbox.events.append_all([], positions=reached)
    await send(inbox, settled.id, 1)
    await inbox.waits.kill([killed.id])
    assert await inbox.retention.prune_positions() == 6
    assert await inbox.retention.prune_positions() == 0
    left = [wait_id for wait_id in ids if await inbox.events.position_of("kafka:x", wait_id)]
    assert left == [waiting.id]


async def test_position_is_kept_while_its_wait_is_waiting(inbox: Inbox) -> None:
    waiting = await register(inbox)
    await inbox.events.append_all([], positions=[SourcePosition("kafka:x", waiting.id, 1)])
    async with inbox.database.begin() as connection:
        await connection.execute(update(source_positions).values(reached_at=1.0))
    await inbox.retention.prune_events(days=-31)
    assert await inbox.retention.prune_positions() == 0
    assert await inbox.events.position_of("kafka:x", waiting.id) == 1


async def test_two_processes_that_prune_concurrently_delete_each_position_once(
    two: tuple[Inbox, Inbox],
) -> None:
    reached = [SourcePosition("kafka:x", str(uuid4()), number) for number in range(1300)]
    await two[0].events.append_all([], positions=reached)
    assert sum(await asyncio.gather(*(inbox.retention.prune_positions() for inbox in two))) == 1300


async def test_two_processes_that_prune_concurrently_delete_each_event_once(
    two: tuple[Inbox, Inbox],
) -> None:
    await two[0].events.append_all([new_event(time=float(i)) for i in range(1300)])
    await _age(two[0], days=1)
    new = await two[0].events.append(new_event())
    assert sum(await asyncio.gather(*(inbox.retention.prune_events(days=0.5) for inbox in two))) == 1300
    assert [event.number for event in await read_all(two[1], "channel:orders")] == [new.number]
    await two[0].events.append(new_event())
    assert await two[0].events.newest() > new.number


async def _age(inbox: Inbox, days: float) -> None:
    """Make everything that has come so much older."""
    async with inbox.database.begin() as connection:
        seconds = days * 86_400
        await connection.execute(update(events).values(received_at=events.c.received_at - seconds))
        await connection.execute(update(event_keys).values(seen_at=event_keys.c.seen_at - seconds))
