"""Opening an inbox: the first process creates the tables; the users on one event loop share one inbox."""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from contract.processes import ended, open_and_close, open_and_forget, start
from contract.support import RETRY_TIMEOUT, eventually, new_wait, register, send
from sqlalchemy import Connection, text

import deferrable_ops.inbox
from deferrable_ops.exceptions import DeploymentError, InboxUnavailable
from deferrable_ops.inbox import NO_RETRY_TIMEOUT, Inbox, use_inbox
from deferrable_ops.inbox.database.database import Database
from deferrable_ops.inbox.database.migrate import schema_version, upgrade
from deferrable_ops.inbox.database.schema import HEAD, alembic_version, metadata


@pytest.fixture(params=["file", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"sqlite+aiosqlite:///{tmp_path / 'inbox.db'}"
    return str(request.getfixturevalue("empty_postgres_url"))


def test_processes_that_start_together_create_the_tables_once(empty_url: str) -> None:
    processes = [start(open_and_close, empty_url) for _ in range(8)]
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * 8


async def test_migrations_create_the_tables_of_the_schema(inbox: Inbox) -> None:
    def differences(connection: Connection) -> list[object]:
        options = {"version_table": alembic_version.name, "compare_type": False}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))

    async with inbox.database.engine.connect() as connection:
        found = await connection.run_sync(differences)
    assert [one for one in found if alembic_version.name not in str(one)] == []


def test_head_is_the_newest_migration() -> None:
    folder = Path(str(deferrable_ops.inbox.__file__)).parent / "migrations"
    assert ScriptDirectory(str(folder)).get_current_head() == HEAD


async def set_version(url: str, number: str, oldest_reader: str | None = None) -> None:
    """Make the tables look as a newer release would leave them."""
    inbox = await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)
    async with inbox.database.begin() as connection:
        await connection.execute(
            text(f"UPDATE {alembic_version.name} SET version_num = :number, oldest_reader = :reader"),
            {"number": number, "reader": oldest_reader},
        )
    await inbox.close()


@pytest.mark.parametrize("oldest_reader", [None, "9998"])
async def test_tables_that_this_release_cannot_use_are_left_alone(
    empty_url: str, oldest_reader: str | None
) -> None:
    await set_version(empty_url, "9999", oldest_reader)
    with pytest.raises(DeploymentError, match="install a newer release"):
        await Inbox.open(empty_url, retry_timeout=RETRY_TIMEOUT)


async def test_tables_of_a_newer_release_that_this_one_can_use_are_used(empty_url: str) -> None:
    await set_version(empty_url, "9999", oldest_reader=HEAD)
    inbox = await Inbox.open(empty_url, retry_timeout=RETRY_TIMEOUT)
    wait = await register(inbox)
    assert (await send(inbox, wait.id, 1)).status == 200
    assert (await schema_version(inbox.database)).number == "9999"
    await inbox.close()


async def test_trigger_waits_until_its_release_can_use_the_tables(empty_url: str) -> None:
    await set_version(empty_url, "9999")
    opening = asyncio.create_task(Inbox.open(empty_url, retry_timeout=NO_RETRY_TIMEOUT, first_backoff=0.05))
    await asyncio.wait([opening], timeout=0.3)
    assert not opening.done()
    database = Database(empty_url, RETRY_TIMEOUT)
    async with database.begin() as connection:
        await connection.execute(
            text(f"UPDATE {alembic_version.name} SET version_num = :head"), {"head": HEAD}
        )
    await database.close()
    await (await opening).close()


async def test_tables_are_upgraded_by_hand_only_where_auto_upgrade_is_off(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__AUTO_UPGRADE", "False")
    with pytest.raises(DeploymentError, match="run `deferrable-ops inbox upgrade`"):
        await Inbox.open(empty_url, retry_timeout=RETRY_TIMEOUT)
    database = Database(empty_url, RETRY_TIMEOUT)
    await upgrade(database)
    await database.close()
    await (await Inbox.open(empty_url, retry_timeout=RETRY_TIMEOUT)).close()


@pytest.fixture
def setting(shared_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", shared_url)
    return shared_url


async def test_users_share_one_inbox_and_the_last_closes_it(setting: str) -> None:
    async with use_inbox(retry_timeout=RETRY_TIMEOUT) as one:
        async with use_inbox(retry_timeout=RETRY_TIMEOUT) as other:
            assert one is other
        await register(one)
    async with use_inbox(retry_timeout=RETRY_TIMEOUT) as later:
        assert later is not one
        await register(later)


async def test_concurrent_users_each_have_a_working_inbox(setting: str) -> None:
    async def use(i: int) -> None:
        await asyncio.sleep(i % 7 / 1000)
        async with use_inbox(retry_timeout=RETRY_TIMEOUT) as inbox:
            await register(inbox)

    await asyncio.gather(*(use(i) for i in range(60)))


async def test_user_cancelled_while_opening_does_not_affect_others(setting: str) -> None:
    async def use() -> None:
        async with use_inbox(retry_timeout=RETRY_TIMEOUT) as inbox:
            await register(inbox)

    first, second = asyncio.create_task(use()), asyncio.create_task(use())
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert first.cancelled() or first.cancelling()


async def test_user_cancelled_repeatedly_while_leaving_closes_the_inbox(setting: str) -> None:
    before = set(asyncio.all_tasks())
    opened = asyncio.Event()

    async def use() -> None:
        async with use_inbox(retry_timeout=RETRY_TIMEOUT) as inbox:
            with inbox.watcher.subscribe("a wait"):
                opened.set()
                await asyncio.Event().wait()

    user = asyncio.create_task(use())
    await opened.wait()
    for _ in range(5):
        user.cancel()
        await asyncio.sleep(0)

    async def nothing_runs() -> bool:
        return not set(asyncio.all_tasks()) - before

    await eventually(nothing_runs, "the inbox to be closed")


async def test_shared_work_does_not_run_in_the_context_of_the_first_user(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow routes a trigger's logs by its context, which also keeps the trigger's DAG in memory."""
    owner = contextvars.ContextVar("owner", default="no trigger")
    owner.set("the first trigger")
    seen = []
    async with use_inbox(retry_timeout=RETRY_TIMEOUT) as inbox:
        real = inbox.waits._register_all

        async def write_all(*arguments: Any) -> Any:
            seen.append(owner.get())
            return await real(*arguments)

        monkeypatch.setattr(inbox.waits.register, "_write_all", write_all)
        await register(inbox)
    assert seen == ["no trigger"]


async def test_all_users_of_an_unreachable_inbox_fail_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", "postgresql+asyncpg://nobody@127.0.0.1:1/none")

    async def use() -> None:
        async with use_inbox(retry_timeout=0.5):
            pass

    async with asyncio.timeout(10):
        results = await asyncio.gather(*(use() for _ in range(100)), return_exceptions=True)
    assert {type(result) for result in results} == {InboxUnavailable}


def test_each_event_loop_has_its_own_inbox(setting: str) -> None:
    async def use() -> Inbox:
        async with use_inbox(retry_timeout=RETRY_TIMEOUT) as inbox:
            await register(inbox)
            return inbox

    assert asyncio.run(use()) is not asyncio.run(use())


async def test_forked_process_opens_its_own_inbox(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with use_inbox(retry_timeout=RETRY_TIMEOUT) as inbox:
        wait = await register(inbox)
        child = multiprocessing.get_context("fork").Process(target=_settle_in_child, args=(wait.id,))
        child.start()
        await eventually(lambda: ended(child), "the child to end")
        assert child.exitcode == 0
        assert (await inbox.waits.get(wait.id)).outcome is not None
        await register(inbox)


def _settle_in_child(wait_id: str) -> None:
    async def settle() -> None:
        async with use_inbox(retry_timeout=RETRY_TIMEOUT) as inbox:
            assert (await send(inbox, wait_id, os.getpid())).status == 200

    asyncio.run(settle())


async def test_file_of_the_inbox_is_private(tmp_path: Path) -> None:
    path = tmp_path / "inbox.db"
    inbox = await Inbox.open(f"sqlite+aiosqlite:///{path}", retry_timeout=RETRY_TIMEOUT)
    await register(inbox)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    await inbox.close()


async def test_opening_a_file_again_keeps_the_locks_of_open_connections(tmp_path: Path) -> None:
    """Closing a file releases all locks of the process on it; another process could then truncate the log in use."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'inbox.db'}"
    inbox = await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)
    wait = await register(inbox)
    await (await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)).close()
    other = start(open_and_close, url)
    await eventually(lambda: ended(other), "the other process to end")
    assert (tmp_path / "inbox.db-wal").exists(), "the other process removed the write-ahead log"
    await send(inbox, wait.id, 1)
    await inbox.close()
    reopened = await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)
    assert (await reopened.waits.get(wait.id)).outcome is not None
    await reopened.close()


async def test_process_exits_although_its_inbox_was_not_closed(shared_url: str) -> None:
    process = start(open_and_forget, shared_url)
    await eventually(lambda: ended(process), "the process to end")
    assert process.exitcode == 0


async def test_waits_are_kept_after_reopening(shared_url: str) -> None:
    first = await Inbox.open(shared_url, retry_timeout=RETRY_TIMEOUT)
    wait = await first.waits.register(new_wait())
    await first.close()
    second = await Inbox.open(shared_url, retry_timeout=RETRY_TIMEOUT)
    assert await second.waits.get(wait.id) == wait
    await second.close()
