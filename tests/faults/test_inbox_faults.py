"""The inbox while its Postgres goes away and comes back: nothing acknowledged is lost, every wait is still woken."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from contract.support import eventually, new_wait, register, send

from deferrable_ops.inbox import Inbox, WaitState
from real_airflow import Postgres, PostgresMissing

WAITS = 300


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    """A server that nobody else minds being stopped."""
    try:
        server = Postgres()
    except PostgresMissing as missing:
        pytest.skip(str(missing))
    server.start()
    yield server
    server.remove()


@pytest.mark.parametrize("notify", ["True", "False"])
@pytest.mark.parametrize("way", ["stop", "crash"])
async def test_a_restart_in_the_middle_of_the_load_loses_nothing(
    own_postgres: Postgres, way: str, notify: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__NOTIFY", notify)
    url = own_postgres.create_database("faults", driver="asyncpg")
    triggerer, endpoint = [await Inbox.open(url, retry_timeout=seconds) for seconds in (float("inf"), 60.0)]
    waits = await asyncio.gather(*(triggerer.waits.register(new_wait()) for _ in range(WAITS)))
    answered: dict[str, int] = {}

    async def follow(wait_id: str) -> Any:
        with triggerer.watcher.subscribe(wait_id) as changes:
            while (wait := await changes.next()).state is WaitState.WAITING:
                pass
            return wait.outcome

    async def post(wait_id: str) -> None:
        answered[wait_id] = (await send(endpoint, wait_id, wait_id)).status

    async def some_are_answered() -> bool:
        return len(answered) >= WAITS / 10

    following = {wait.id: asyncio.create_task(follow(wait.id)) for wait in waits}
    posting = [
        asyncio.create_task(_spread(post, [wait.id for wait in waits[start::10]])) for start in range(10)
    ]
    await eventually(some_are_answered, "some answers")
    await asyncio.to_thread(getattr(own_postgres, way))
    late = [asyncio.create_task(triggerer.waits.register(new_wait())) for _ in range(50)]
    await asyncio.wait(late, timeout=0.5)
    await asyncio.to_thread(own_postgres.start)
    async with asyncio.timeout(60):
        await asyncio.gather(*posting, *late)
        outcomes = dict(zip(following, await asyncio.gather(*following.values()), strict=True))
    assert set(answered.values()) == {200}
    assert all(outcome.value == wait_id for wait_id, outcome in outcomes.items())
    for inbox in (triggerer, endpoint):
        await register(inbox)
        await inbox.close()


async def _spread(post: Any, wait_ids: list[str]) -> None:
    for wait_id in wait_ids:
        await post(wait_id)
        await asyncio.sleep(0.01)
