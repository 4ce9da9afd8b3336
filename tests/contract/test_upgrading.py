"""The first process that opens an inbox of an older release upgrades it, and keeps its data."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from contract.processes import open_and_close, start
from contract.support import RETRY_TIMEOUT, new_event, register, send
from sqlalchemy import Connection, insert, text

import deferrable_ops.inbox
from deferrable_ops.inbox import Inbox, WaitState
from deferrable_ops.inbox.database.database import Database
from deferrable_ops.inbox.database.schema import HEAD, alembic_version, keys, waits

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
