"""How a process learns that a wait has changed: by a signal at once, or by the sweep, and never not at all."""

from __future__ import annotations

import asyncio
import time

import pytest
from contract.support import RETRY_TIMEOUT, eventually, new_wait, register, send
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.inbox import Inbox, WaitState, watcher
from deferrable_ops.inbox.changes import DataVersionSignal, NoSignal, NotificationSignal
from deferrable_ops.inbox.database.database import Transaction
from deferrable_ops.inbox.database.schema import waits
from deferrable_ops.inbox.watcher import Subscription
from deferrable_ops.outcome import Success

WITHIN = 20.0
LISTENERS = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"


async def woken(subscription: Subscription) -> object:
    async with asyncio.timeout(WITHIN):
        wait = await subscription.next()
        while wait.state is WaitState.WAITING:
            wait = await subscription.next()
        return wait.outcome


async def test_a_wait_is_woken_in_its_own_process(inbox: Inbox) -> None:
    wait = await register(inbox)
    with inbox.watcher.subscribe(wait.id) as changes:
        await send(inbox, wait.id, {"a": 1})
        assert await woken(changes) == Success({"a": 1})


async def test_a_wait_is_woken_by_another_process_with_the_sweep_off(
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


async def test_a_wait_is_woken_by_the_sweep_with_every_signal_off(
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


async def test_progress_is_told_and_the_wait_goes_on(inbox: Inbox) -> None:
    wait = await register(inbox, expected={"success_when": "done"})
    with inbox.watcher.subscribe(wait.id) as changes:
        await send(inbox, wait.id, {"done": False, "step": 1})
        async with asyncio.timeout(WITHIN):
            while (told := await changes.next()).progress is None:
                pass
        assert (told.state, told.progress) == (WaitState.WAITING, {"done": False, "step": 1})


async def test_everyone_who_waits_for_a_wait_is_woken(inbox: Inbox) -> None:
    wait = await register(inbox)
    with inbox.watcher.subscribe(wait.id) as one, inbox.watcher.subscribe(wait.id) as other:
        await send(inbox, wait.id, 1)
        assert await woken(one) == await woken(other) == Success(1)


@pytest.mark.parametrize("leaves", [0, 1, 2])
async def test_who_stops_waiting_for_a_wait_leaves_the_others(inbox: Inbox, leaves: int) -> None:
    wait = await register(inbox)
    all_of_them = [inbox.watcher.subscribe(wait.id) for _ in range(3)]
    for changes in all_of_them:
        changes.__enter__()
    all_of_them.pop(leaves).__exit__()
    await send(inbox, wait.id, 1)
    for changes in all_of_them:
        assert await woken(changes) == Success(1)
    assert wait.id in inbox.watcher.watched
    for changes in all_of_them:
        changes.__exit__()
    assert wait.id not in inbox.watcher.watched


async def test_changes_that_come_in_any_order_of_commit_are_all_seen(
    two: tuple[Inbox, Inbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cursor trap: a transaction that began first and commits last must not be overlooked."""
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
        if writing.database.dialect == "postgresql":  # SQLite lets no other transaction begin meanwhile
            await send(two[1], quick.id, 1)
            assert await woken(quick_changes) == Success(1)
        finish.set()
        await late
        async with asyncio.timeout(WITHIN):
            while (await slow_changes.next()).progress is None:
                pass


async def test_thousands_of_waits_of_which_each_is_woken_once(two: tuple[Inbox, Inbox]) -> None:
    registered = await asyncio.gather(*(two[0].waits.register(new_wait()) for _ in range(1000)))
    told: list[object] = []

    async def follow(wait_id: str) -> None:
        with two[0].watcher.subscribe(wait_id) as changes:
            told.append(await woken(changes))

    followers = [asyncio.create_task(follow(wait.id)) for wait in registered]
    await asyncio.gather(*(send(two[1], wait.id, wait.id) for wait in registered))
    await asyncio.gather(*followers)
    assert sorted(str(outcome) for outcome in told) == sorted(str(Success(wait.id)) for wait in registered)


async def test_the_watcher_outlives_trouble_of_any_kind(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = await register(inbox)
    troubles = iter([ValueError("a bug"), OSError("the network"), None])
    real = watcher.read_changes

    async def troubled(*arguments: object) -> object:
        if (trouble := next(troubles, None)) is not None:
            raise trouble
        return await real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(watcher, "read_changes", troubled)
    monkeypatch.setattr(watcher, "_RETRY_SECONDS", 0.01)
    with inbox.watcher.subscribe(wait.id) as changes:
        await send(inbox, wait.id, 1)
        assert await woken(changes) == Success(1)


async def test_a_row_of_a_newer_version_does_not_keep_the_others_from_being_woken(inbox: Inbox) -> None:
    strange, ordinary = await register(inbox), await register(inbox)
    async with inbox.database.begin() as connection:
        await connection.execute(update(waits).where(waits.c.id == strange.id).values(state="hibernating"))
    with inbox.watcher.subscribe(strange.id), inbox.watcher.subscribe(ordinary.id) as changes:
        await send(inbox, ordinary.id, 1)
        assert await woken(changes) == Success(1)


# SQLite keeps no connection that could be closed.
@pytest.mark.parametrize("shared_url", ["postgres"], indirect=True)
async def test_the_signal_is_listened_for_again_after_it_broke_off(
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
    """Wait until the watcher has looked for the first time, and listens where there is something to listen to."""
    async with asyncio.timeout(WITHIN):
        await changes.next()

    async def listeners(connection: AsyncConnection) -> int:
        return int((await connection.execute(text(f"SELECT count(*) {LISTENERS}"))).scalar_one())

    async def somebody_listens() -> bool:
        return await inbox.database.read(listeners) > 0

    if inbox.database.notify and listening:
        await eventually(somebody_listens, "somebody who listens")
