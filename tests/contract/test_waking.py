"""A process sees every change of a wait: at once by a signal, or else by the sweep."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

import pytest
from contract.support import RETRY_TIMEOUT, eventually, new_wait, register, send
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.inbox import Inbox, WaitState, watcher
from deferrable_ops.inbox.changes import DataVersionSignal, NoSignal, NotificationSignal
from deferrable_ops.inbox.database.database import Transaction
from deferrable_ops.inbox.database.schema import waits
from deferrable_ops.inbox.watcher import Subscription, Watcher
from deferrable_ops.outcome import Success

WITHIN = 20.0
LISTENERS = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"


async def woken(subscription: Subscription) -> object:
    async with asyncio.timeout(WITHIN):
        wait = await subscription.next()
        while wait.state is WaitState.WAITING:
            wait = await subscription.next()
        return wait.outcome


async def test_wait_is_woken_in_its_own_process(inbox: Inbox) -> None:
    wait = await register(inbox)
    with inbox.watcher.subscribe(wait.id) as changes:
        await send(inbox, wait.id, {"a": 1})
        assert await woken(changes) == Success({"a": 1})


async def test_wait_is_woken_by_another_process_with_the_sweep_off(
    two: tuple[Inbox, Inbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    _sweep_interval(monkeypatch, 3600.0)
    wait = await register(two[0])
    with two[0].watcher.subscribe(wait.id) as changes:
        await _first_look(two[0], changes)
        sent_at = time.monotonic()
        await send(two[1], wait.id, 1)
        assert await woken(changes) == Success(1)
        assert time.monotonic() - sent_at < 2


async def test_wait_is_woken_by_the_sweep_with_every_signal_off(
    shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__NOTIFY", "False")
    monkeypatch.setattr(DataVersionSignal, "run", NoSignal.run)
    _sweep_interval(monkeypatch, 0.2)
    one, other = [await Inbox.open(shared_url, retry_timeout=RETRY_TIMEOUT) for _ in range(2)]
    registered = [await register(one) for _ in range(5)]
    with one.watcher.subscribe(registered[0].id) as first:
        await _first_look(one, first)
        for wait in registered:
            with one.watcher.subscribe(wait.id) as changes:
                await send(other, wait.id, wait.id)
                assert await woken(changes) == Success(wait.id)
    await one.close()
    await other.close()


async def test_progress_wakes_the_wait_and_it_keeps_waiting(inbox: Inbox) -> None:
    wait = await register(inbox, expected={"success_when": "done"})
    with inbox.watcher.subscribe(wait.id) as changes:
        await send(inbox, wait.id, {"done": False, "step": 1})
        async with asyncio.timeout(WITHIN):
            while (changed := await changes.next()).progress is None:
                pass
        assert (changed.state, changed.progress) == (WaitState.WAITING, {"done": False, "step": 1})


async def test_all_subscribers_of_a_wait_are_woken(inbox: Inbox) -> None:
    wait = await register(inbox)
    with inbox.watcher.subscribe(wait.id) as one, inbox.watcher.subscribe(wait.id) as other:
        await send(inbox, wait.id, 1)
        assert await woken(one) == await woken(other) == Success(1)


@pytest.mark.parametrize("leaves", [0, 1, 2])
async def test_leaving_a_subscription_does_not_affect_the_others(inbox: Inbox, leaves: int) -> None:
    wait = await register(inbox)
    stacks = [ExitStack() for _ in range(3)]
    subscriptions = [stack.enter_context(inbox.watcher.subscribe(wait.id)) for stack in stacks]
    stacks.pop(leaves).close()
    del subscriptions[leaves]
    await send(inbox, wait.id, 1)
    for changes in subscriptions:
        assert await woken(changes) == Success(1)
    assert wait.id in inbox.watcher.watched
    for stack in stacks:
        stack.close()
    assert wait.id not in inbox.watcher.watched


async def test_change_that_commits_late_is_not_missed(
    two: tuple[Inbox, Inbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that starts first and commits last must not fall before the cursor."""
    watching, writing = two
    monkeypatch.setattr(NotificationSignal, "run", NoSignal.run)
    _sweep_interval(monkeypatch, 0.05)
    slow, quick = await register(watching), await register(watching)
    began, finish = asyncio.Event(), asyncio.Event()

    async def late_commit() -> None:
        async def write(transaction: Transaction) -> None:
            change = update(waits).where(waits.c.id == slow.id)
            await transaction.connection.execute(change.values(progress="1", version=transaction.version))
            began.set()
            await finish.wait()

        await writing.database.write(write)

    with (
        watching.watcher.subscribe(slow.id) as slow_changes,
        watching.watcher.subscribe(quick.id) as quick_changes,
    ):
        await _first_look(watching, slow_changes, listening=False)
        late = asyncio.create_task(late_commit())
        await began.wait()
        # SQLite does not start another write transaction meanwhile.
        if writing.database.dialect == "postgresql":
            await send(two[1], quick.id, 1)
            assert await woken(quick_changes) == Success(1)
        finish.set()
        await late
        async with asyncio.timeout(WITHIN):
            while (await slow_changes.next()).progress is None:
                pass


async def test_each_of_many_waits_is_woken_once(two: tuple[Inbox, Inbox]) -> None:
    registered = await asyncio.gather(*(two[0].waits.register(new_wait()) for _ in range(1000)))
    outcomes: list[object] = []

    async def follow(wait_id: str) -> None:
        with two[0].watcher.subscribe(wait_id) as changes:
            outcomes.append(await woken(changes))

    followers = [asyncio.create_task(follow(wait.id)) for wait in registered]
    await asyncio.gather(*(send(two[1], wait.id, wait.id) for wait in registered))
    await asyncio.gather(*followers)
    assert sorted(map(str, outcomes)) == sorted(str(Success(wait.id)) for wait in registered)


async def test_watcher_continues_after_errors(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = await register(inbox)
    troubles = iter([ValueError("a bug"), OSError("the network"), None])
    real = watcher.read_changes

    async def troubled(*arguments: object) -> object:
        if (trouble := next(troubles, None)) is not None:
            raise trouble
        return await real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(watcher, "read_changes", troubled)
    inbox.watcher = Watcher(inbox.database, inbox.waits, inbox.endpoints, retry_interval=0.01)
    with inbox.watcher.subscribe(wait.id) as changes:
        await send(inbox, wait.id, 1)
        assert await woken(changes) == Success(1)


async def test_unreadable_row_does_not_affect_other_waits(inbox: Inbox) -> None:
    strange, ordinary = await register(inbox), await register(inbox)
    async with inbox.database.begin() as connection:
        await connection.execute(update(waits).where(waits.c.id == strange.id).values(state="hibernating"))
    with inbox.watcher.subscribe(strange.id), inbox.watcher.subscribe(ordinary.id) as changes:
        await send(inbox, ordinary.id, 1)
        assert await woken(changes) == Success(1)


# SQLite keeps no connection that could be closed.
@pytest.mark.parametrize("shared_url", ["postgres"], indirect=True)
async def test_listener_reconnects_after_its_connection_was_closed(
    two: tuple[Inbox, Inbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    watching, writing = two
    _sweep_interval(monkeypatch, 3600.0)
    wait = await register(watching)
    with watching.watcher.subscribe(wait.id) as changes:
        await _first_look(watching, changes)
        async with writing.database.begin() as connection:
            await connection.execute(text(f"SELECT pg_terminate_backend(pid) {LISTENERS}"))
        await send(writing, wait.id, 1)
        assert await woken(changes) == Success(1)


def _sweep_interval(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for signal in (DataVersionSignal, NotificationSignal, NoSignal):
        monkeypatch.setattr(signal, "sweep_interval", seconds)


async def _first_look(inbox: Inbox, changes: Subscription, *, listening: bool = True) -> None:
    """Wait for the watcher's first query, and on Postgres for its LISTEN."""
    async with asyncio.timeout(WITHIN):
        await changes.next()

    async def listeners(connection: AsyncConnection) -> int:
        return int((await connection.execute(text(f"SELECT count(*) {LISTENERS}"))).scalar_one())

    async def is_listening() -> bool:
        return await inbox.database.read(listeners) > 0

    if inbox.database.notify and listening:
        await eventually(is_listening, "LISTEN")
