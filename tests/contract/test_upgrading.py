"""The first process that opens an inbox of an older release upgrades it, and keeps its data."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from contract.processes import open_and_close, start
from contract.support import RETRY_TIMEOUT, new_event, register, send
from sqlalchemy import Connection, create_engine, insert, inspect, text

import deferrable_ops.inbox
from deferrable_ops.inbox import Inbox, WaitState
from deferrable_ops.inbox.database.database import Database
from deferrable_ops.inbox.database.schema import HEAD, alembic_version, keys, waits
from real_airflow import extract_older_release

SCRIPTS = Path(str(deferrable_ops.inbox.__file__)).parent / "migrations"
OLD_WAIT = {
    "id": "7e230a22-651f-5a46-9adf-ea8756e35ab0",
    "ti_id": "ti",
    "try_number": 1,
    "dag_id": "dag",
    "run_id": "run",
    "task_id": "task",
    "map_index": -1,
    "feature": "webhook",
    "state": "waiting",
    "created_at": 1.0,
    "deadline": 99_999_999_999.0,
    "key_id": "00000001",
    "version": 0,
}


@pytest.fixture(params=["file", "postgres"])
async def old_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An inbox of the first schema, without events: it has a wait and the key that signed its token."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'inbox.db'}"
    if request.param == "postgres":
        url = str(request.getfixturevalue("empty_postgres_url"))
    database = Database(url, RETRY_TIMEOUT)
    async with database.begin() as connection:
        await connection.run_sync(_upgrade_to_the_first)
        await connection.execute(insert(keys).values(id="00000001", secret=b"s" * 32, created_at=1.0))
        await connection.execute(insert(waits).values(OLD_WAIT))
    await database.close()
    return url


def _upgrade_to_the_first(connection: Connection) -> None:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(SCRIPTS))
    command.upgrade(config, "0001")


async def test_upgrade_keeps_the_data(old_url: str) -> None:
    inbox = await Inbox.open(old_url, retry_timeout=RETRY_TIMEOUT)
    async with inbox.database.engine.connect() as connection:
        version = (await connection.execute(text(f"SELECT version_num FROM {alembic_version.name}"))).scalar()
    assert version == HEAD
    wait_id = str(OLD_WAIT["id"])
    token = await inbox.keys.token(wait_id, "00000001")
    assert await inbox.keys.verify(token) == wait_id
    assert (await send(inbox, wait_id, {"rows": 3})).status == 200
    assert (await inbox.waits.get(wait_id)).state is WaitState.SUCCESS
    assert (await register(inbox)).state is WaitState.WAITING
    assert (await inbox.events.append(new_event())).number == 1
    await inbox.close()


async def test_processes_that_start_together_upgrade_an_older_inbox_once(old_url: str) -> None:
    processes = [start(open_and_close, old_url) for _ in range(6)]
    for process in processes:
        await asyncio.to_thread(process.join, 60)
    assert [process.exitcode for process in processes] == [0] * 6
    inbox = await Inbox.open(old_url, retry_timeout=RETRY_TIMEOUT)
    assert await inbox.events.newest() == 0
    assert len(await inbox.waits.find()) == 1
    await inbox.close()


def migrations() -> list[str]:
    """Return the numbers of the migrations, the oldest first."""
    return sorted(path.name[:4] for path in (SCRIPTS / "versions").glob("[0-9]*.py"))


def test_migrations_are_numbered_and_have_one_head() -> None:
    script = ScriptDirectory(str(SCRIPTS))
    assert script.get_heads() == [HEAD]
    assert migrations() == [f"{number:04}" for number in range(1, len(migrations()) + 1)]


def test_release_before_each_migration_can_use_the_tables_after_it() -> None:
    for number in migrations()[3:]:
        module: Any = ScriptDirectory(str(SCRIPTS)).get_revision(number).module
        assert module.oldest_reader < number, f"{number} locks out the release before it"


def test_migrations_only_add(tmp_path: Path) -> None:
    """A release that does not know a new column must still be able to write rows."""
    engine = create_engine(f"sqlite:///{tmp_path}/inbox.db")
    before: dict[str, set[str]] = {}
    for number in migrations():
        with engine.begin() as connection:
            config = Config(attributes={"connection": connection})
            config.set_main_option("script_location", str(SCRIPTS))
            command.upgrade(config, number)
        tables = {table: inspect(engine).get_columns(table) for table in inspect(engine).get_table_names()}
        for table, columns in before.items():
            added = [column for column in tables[table] if column["name"] not in columns]
            assert columns <= {column["name"] for column in tables[table]}, f"{number} removes from {table}"
            assert all(column["nullable"] or column["default"] for column in added), f"{number}: {table}"
        before = {table: {column["name"] for column in columns} for table, columns in tables.items()}


def test_code_before_the_newest_migration_works_on_the_new_tables(old_url: str, tmp_path: Path) -> None:
    """A rollback, and a host that is upgraded later: the older release continues on the newer tables."""
    older = extract_older_release(tmp_path)
    asyncio.run(_open_and_close(old_url))
    old_code = subprocess.run(
        [sys.executable, "-c", _USE_INBOX, old_url, HEAD],
        env={**os.environ, "PYTHONPATH": str(older)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert old_code.returncode == 0, old_code.stderr
    assert old_code.stdout.split() == ["200", "success", "1"]


async def _open_and_close(url: str) -> None:
    await (await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)).close()


_USE_INBOX = """
import asyncio, sys
import deferrable_ops
from deferrable_ops.inbox import Attempt, Inbox, NewWait
from deferrable_ops.inbox.database.schema import HEAD
from deferrable_ops.inbox.events.events import NewEvent
from deferrable_ops.inbox.waits.callbacks import Callback, Verb

async def main(url, new_head):
    assert HEAD < new_head, "this is not the older code"
    inbox = await Inbox.open(url, retry_timeout=20)
    attempt = Attempt("0198c0de-0000-7000-8000-000000000001", 1, "dag", "run", "other", -1)
    wait = await inbox.waits.register(NewWait(attempt, feature="webhook", timeout=3600.0))
    receipt = await inbox.callbacks.record(Callback(wait.id, Verb("success"), b"1", 1, source="test"))
    event = await inbox.events.append(NewEvent("channel:orders", "key", {}, {}))
    print(receipt.status, (await inbox.waits.get(wait.id)).state, event.number)
    await inbox.close()

asyncio.run(main(*sys.argv[1:]))
"""
