"""Endpoints killed with SIGKILL while thousands of services call back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from faults.support.load import Load, attempt, number_of, paths, payload, register
from faults.support.processes import ServedEndpoint

from deferrable_ops.inbox import Inbox, WaitState
from deferrable_ops.outcome import Success

PART, FULL = 2_000, 10_000  # callbacks, without and with `--long`
KILLS = 5


@pytest.fixture(params=["sqlite", "postgres"])
def inbox_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty inbox that several processes share."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'inbox.db'}"
    url: str = request.getfixturevalue("postgres").create_database("killed", driver="asyncpg")
    return url


@pytest.fixture
async def inbox(inbox_url: str) -> AsyncIterator[Inbox]:
    """The test's own view of it."""
    opened = await Inbox.open(inbox_url, retry_timeout=60)
    yield opened
    await opened.close()


@pytest.fixture
def endpoints(inbox: Inbox, inbox_url: str, tmp_path: Path) -> Iterator[list[ServedEndpoint]]:
    """Two endpoints with one inbox."""
    served = [ServedEndpoint(tmp_path, inbox_url).start() for _ in range(2)]
    yield [endpoint.wait_until_ready() for endpoint in served]
    for endpoint in served:
        endpoint.kill()


async def test_no_acknowledged_callback_is_lost_and_none_is_invented(
    inbox: Inbox, endpoints: list[ServedEndpoint], full_load: bool
) -> None:
    numbers = range(FULL if full_load else PART)
    await register(inbox, numbers)
    load = Load([endpoint.url for endpoint in endpoints], await paths(inbox, numbers))

    for kill in range(KILLS):
        lot = numbers[kill * len(numbers) // KILLS : (kill + 1) * len(numbers) // KILLS]
        victim = endpoints[kill % 2]
        await asyncio.to_thread(victim.wait_until_ready)
        half = len(load.acknowledged) + len(lot) // 2
        await asyncio.gather(load.send(lot), load.when_acknowledged(half, lambda v=victim: kill_and_start(v)))

    assert load.acknowledged.keys() | load.unanswered == set(numbers)
    assert load.unanswered, "the kills came too late to interrupt anything"
    settled = await settled_values(inbox, numbers)
    assert settled == {number: payload(number) for number in settled}
    assert load.acknowledged.keys() <= settled.keys()
    assert settled.keys() - load.acknowledged.keys() <= load.unanswered

    for endpoint in endpoints:
        await asyncio.to_thread(endpoint.wait_until_ready)
    some = list(load.acknowledged)[::10]
    assert await load.send_again(some) == {number: load.acknowledged[number] for number in some}
    first = await load.send_again(sorted(load.unanswered))
    assert await load.send_again(sorted(load.unanswered)) == first
    assert await settled_values(inbox, numbers) == {number: payload(number) for number in numbers}


async def kill_and_start(endpoint: ServedEndpoint) -> None:
    endpoint.kill()
    endpoint.start()


async def settled_values(inbox: Inbox, numbers: range) -> dict[int, object]:
    """Return the value of every wait that is settled, which each must be as a success."""
    waits = await inbox.waits.get_many([attempt(number).wait_id for number in numbers])
    assert len(waits) == len(numbers)
    assert {wait.state for wait in waits} <= {WaitState.WAITING, WaitState.SUCCESS}
    return {number_of(wait): wait.outcome.value for wait in waits if isinstance(wait.outcome, Success)}
