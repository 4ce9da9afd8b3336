"""Fixtures that run the contract tests on a SQLite file, SQLite in memory, and Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from contract.support import RETRY_TIMEOUT
from sqlalchemy import delete

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.database.schema import callbacks, daemons, endpoints, keys, locks, waits
from deferrable_ops.inbox.events.event_schema import channels, event_keys, events, source_positions
from real_airflow import Postgres


@pytest.fixture(scope="session")
def postgres_url(postgres: Postgres) -> str:
    """A Postgres database for the whole session: creating one for every test would take most of the time."""
    return postgres.create_database("contract", driver="asyncpg")


@pytest.fixture
def empty_postgres_url(postgres: Postgres) -> str:
    """A Postgres database without tables."""
    return postgres.create_database("empty", driver="asyncpg")


@pytest.fixture(params=["file", "postgres"])
async def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an inbox that several processes can share."""
    if request.param == "file":
        return f"sqlite+aiosqlite:///{tmp_path / 'inbox.db'}"
    return await _emptied(request.getfixturevalue("postgres_url"))


@pytest.fixture(params=["file", "memory", "postgres"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an inbox, of every kind."""
    if request.param == "file":
        return f"sqlite+aiosqlite:///{tmp_path / 'inbox.db'}"
    if request.param == "memory":
        return "sqlite+aiosqlite://"
    return await _emptied(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def inbox(url: str) -> AsyncIterator[Inbox]:
    """An empty inbox, opened once."""
    opened = await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)
    yield opened
    await opened.close()


@pytest.fixture
async def two(shared_url: str) -> AsyncIterator[tuple[Inbox, Inbox]]:
    """An empty inbox, opened twice, as two processes would."""
    one, other = (
        await Inbox.open(shared_url, retry_timeout=RETRY_TIMEOUT),
        await Inbox.open(shared_url, retry_timeout=RETRY_TIMEOUT),
    )
    yield one, other
    await one.close()
    await other.close()


async def _emptied(url: str) -> str:
    opened = await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)
    async with opened.database.begin() as connection:
        for table in (
            callbacks,
            waits,
            keys,
            endpoints,
            locks,
            events,
            event_keys,
            channels,
            daemons,
            source_positions,
        ):
            await connection.execute(delete(table))
    await opened.close()
    return url
