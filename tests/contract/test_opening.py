"""Opening: the tables are made once, whoever comes first; the users on one event loop share one inbox."""

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
from deferrable_ops.exceptions import ConfigurationError, InboxUnavailable
from deferrable_ops.inbox import Inbox, use_inbox
from deferrable_ops.inbox.database.schema import HEAD, alembic_version, metadata


@pytest.fixture(params=["file", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"sqlite+aiosqlite:///{tmp_path / 'inbox.db'}"
    return str(request.getfixturevalue("empty_postgres_url"))


def test_processes_that_start_together_on_an_empty_database_all_open_it(empty_url: str) -> None:
    processes = [start(open_and_close, empty_url) for _ in range(8)]
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * 8


async def test_the_migrations_make_the_tables_that_the_code_uses(inbox: Inbox) -> None:
    def differences(connection: Connection) -> list[object]:
        options = {"version_table": alembic_version.name, "compare_type": False}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))

    async with inbox.database.engine.connect() as connection:
        found = await connection.run_sync(differences)
    assert [one for one in found if alembic_version.name not in str(one)] == []


def test_the_newest_migration_is_the_one_that_counts_as_up_to_date() -> None:
    folder = Path(str(deferrable_ops.inbox.__file__)).parent / "migrations"
    assert ScriptDirectory(str(folder)).get_current_head() == HEAD


async def test_tables_of_a_newer_release_are_left_alone(empty_url: str) -> None:
    inbox = await Inbox.open(empty_url, retry_timeout=RETRY_TIMEOUT)
    async with inbox.database.begin() as connection:
        await connection.execute(text(f"UPDATE {alembic_version.name} SET version_num = '9999'"))
    await inbox.close()
    with pytest.raises(ConfigurationError, match="install the release that upgraded"):
        await Inbox.open(empty_url, retry_timeout=RETRY_TIMEOUT)


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


async def test_users_who_come_and_go_at_once_each_have_a_working_inbox(setting: str) -> None:
    async def use(i: int) -> None:
        await asyncio.sleep(i % 7 / 1000)
        async with use_inbox(retry_timeout=RETRY_TIMEOUT) as inbox:
            await register(inbox)

    await asyncio.gather(*(use(i) for i in range(60)))


async def test_a_user_who_is_cancelled_while_it_opens_leaves_it_to_the_others(setting: str) -> None:
    async def use() -> None:
        async with use_inbox(retry_timeout=RETRY_TIMEOUT) as inbox:
            await register(inbox)

    first, second = asyncio.create_task(use()), asyncio.create_task(use())
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert first.cancelled() or first.cancelling()


async def test_a_user_who_is_cancelled_again_and_again_while_it_leaves_still_closes_it(setting: str) -> None:
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


async def test_what_users_share_does_not_run_in_the_context_of_the_first(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow routes a trigger's logs by its context, and the context keeps the trigger's whole DAG alive."""
    owner = contextvars.ContextVar("owner", default="nobody")
    owner.set("the first trigger")
    seen = []
    async with use_inbox(retry_timeout=RETRY_TIMEOUT) as inbox:
        real = inbox.waits._register_all

        async def write_all(*arguments: Any) -> Any:
            seen.append(owner.get())
            return await real(*arguments)

        monkeypatch.setattr(inbox.waits.register, "_write_all", write_all)
        await register(inbox)
    assert seen == ["nobody"]


async def test_all_who_wait_for_an_inbox_that_is_away_learn_it_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", "postgresql+asyncpg://nobody@127.0.0.1:1/none")

    async def use() -> None:
        async with use_inbox(retry_timeout=0.5):
            pass

    async with asyncio.timeout(10):
        results = await asyncio.gather(*(use() for _ in range(100)), return_exceptions=True)
    assert {type(result) for result in results} == {InboxUnavailable}


def test_two_event_loops_have_an_inbox_each(setting: str) -> None:
    async def use() -> Inbox:
        async with use_inbox(retry_timeout=RETRY_TIMEOUT) as inbox:
            await register(inbox)
            return inbox

    assert asyncio.run(use()) is not asyncio.run(use())


async def test_a_forked_process_opens_its_own_and_leaves_its_parents_alone(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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


async def test_the_file_of_the_inbox_is_private(tmp_path: Path) -> None:
    path = tmp_path / "inbox.db"
    inbox = await Inbox.open(f"sqlite+aiosqlite:///{path}", retry_timeout=RETRY_TIMEOUT)
    await register(inbox)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    await inbox.close()


async def test_opening_a_file_again_keeps_the_locks_of_those_who_have_it_open(tmp_path: Path) -> None:
    """To close a file drops all locks that the process holds on it: another's last close would then drop commits."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'inbox.db'}"
    inbox = await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)
    wait = await register(inbox)
    await (await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)).close()
    other = start(open_and_close, url)
    await eventually(lambda: ended(other), "the other process to end")
    assert (tmp_path / "inbox.db-wal").exists(), "the other process took itself for the last, and cut the log"
    await send(inbox, wait.id, 1)
    await inbox.close()
    reopened = await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)
    assert (await reopened.waits.get(wait.id)).outcome is not None
    await reopened.close()


async def test_a_process_ends_though_it_forgot_to_close(shared_url: str) -> None:
    process = start(open_and_forget, shared_url)
    await eventually(lambda: ended(process), "the process to end")
    assert process.exitcode == 0


async def test_registering_after_reopening_finds_what_was_registered(shared_url: str) -> None:
    first = await Inbox.open(shared_url, retry_timeout=RETRY_TIMEOUT)
    wait = await first.waits.register(new_wait())
    await first.close()
    second = await Inbox.open(shared_url, retry_timeout=RETRY_TIMEOUT)
    assert await second.waits.get(wait.id) == wait
    await second.close()
