from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deferrable_ops.exceptions import InboxUnavailable
from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.group_commit import GroupCommit


@pytest.fixture
def batches() -> list[list[int]]:
    return []


@pytest.fixture
async def group(batches: list[list[int]]) -> Any:
    database = Database("sqlite+aiosqlite://", retry_timeout=5)

    async def write(work: Any) -> Any:
        await asyncio.sleep(0)
        return await work(None)

    async def write_all(_transaction: Transaction, items: list[int]) -> list[int]:
        batches.append(items)
        if -1 in items:
            raise ValueError("a bad item")
        if -2 in items:
            await asyncio.Event().wait()
        return [2 * item for item in items]

    database.write = write  # type: ignore[method-assign]
    yield GroupCommit(database, write_all)
    await database.close()


async def test_each_caller_gets_its_own_result(group: Any) -> None:
    assert await asyncio.gather(*(group(i) for i in range(1201))) == [2 * i for i in range(1201)]


async def test_items_that_arrive_during_a_commit_share_the_next(group: Any, batches: list[list[int]]) -> None:
    first = asyncio.create_task(group(0))
    while not batches:
        await asyncio.sleep(0)
    await asyncio.gather(first, *(group(i) for i in range(1, 40)))
    assert len(batches) <= 3


@pytest.mark.parametrize("writers", [1, 2])
async def test_concurrent_commits_are_limited_to_the_writers(writers: int) -> None:
    database = Database("sqlite+aiosqlite://", retry_timeout=5)
    under_way, most = 0, 0

    async def write(work: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(10):
            await asyncio.sleep(0)
        under_way -= 1
        return await work(None)

    async def write_all(_transaction: Transaction, items: list[int]) -> list[int]:
        return items

    database.write = write  # type: ignore[method-assign]
    group: GroupCommit[int, int] = GroupCommit(database, write_all, writers=writers)
    assert await asyncio.gather(*(group(i) for i in range(2000))) == list(range(2000))
    assert most == writers
    await database.close()


async def test_invalid_item_fails_alone(group: Any) -> None:
    results = await asyncio.gather(*(group(i) for i in (1, -1, 2)), return_exceptions=True)
    assert (results[0], results[2]) == (2, 4)
    assert isinstance(results[1], ValueError)


async def test_items_of_cancelled_callers_are_not_written(group: Any, batches: list[list[int]]) -> None:
    calls = [asyncio.create_task(group(i)) for i in range(3)]
    await asyncio.sleep(0)
    calls[1].cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert batches == [[0, 2]]


async def test_callers_fail_when_the_writer_is_cancelled(group: Any, batches: list[list[int]]) -> None:
    hanging, queued = asyncio.create_task(group(-2)), None
    while not batches:
        await asyncio.sleep(0)
    queued = asyncio.create_task(group(1))
    await asyncio.sleep(0)
    for task in asyncio.all_tasks():
        if task.get_name() == "deferrable-ops group commit":
            task.cancel()
    for call in (hanging, queued):
        with pytest.raises(InboxUnavailable, match="was closed"):
            await call
    assert await group(3) == 6
