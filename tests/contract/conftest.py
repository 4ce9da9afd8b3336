"""Fixtures that run the contract tests on a SQLite file, SQLite in memory, and Postgres."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from contract.support import RETRY_TIMEOUT
from sqlalchemy import NullPool, create_engine, delete, make_url

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.database.schema import (
    callbacks,
    daemons,
    endpoints,
    hosts,
    keys,
    locks,
    outages,
    owner,
    requests,
    waits,
)
from deferrable_ops.inbox.events.event_schema import channels, event_keys, events, source_positions
from real_airflow import Postgres


@pytest.fixture(scope="session")
def postgres_url(postgres: Postgres) -> str:
    """A Postgres database for the whole session: creating one for every test would take most of the time."""
    url = postgres.create_database("contract", driver="asyncpg")
    _create_tables(url)
    return url


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty inbox to copy: creating the tables for every test would take most of the time."""
    file = tmp_path_factory.mktemp("migrated") / "inbox.db"
    _create_tables(f"sqlite+aiosqlite:///{file}")
    assert [*file.parent.iterdir()] == [file], "SQLite has not written everything to the file"
    return file


@pytest.fixture
def empty_postgres_url(postgres: Postgres) -> str:
    """A Postgres database without tables."""
    return postgres.create_database("empty", driver="asyncpg")


@pytest.fixture(params=["file", "postgres"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an inbox that several processes can share."""
    if request.param == "file":
        return _copied(request.getfixturevalue("migrated_file"), tmp_path)
    return _emptied(request.getfixturevalue("postgres_url"))


@pytest.fixture(params=["file", "memory", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an inbox, of every kind."""
    if request.param == "file":
        return _copied(request.getfixturevalue("migrated_file"), tmp_path)
    if request.param == "memory":
        return "sqlite+aiosqlite://"
    return _emptied(request.getfixturevalue("postgres_url"))


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


def _create_tables(url: str) -> None:
    async def open_and_close() -> None:
        await (await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)).close()

    # In a thread, which has no event loop yet.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, open_and_close()).result()


def _copied(migrated: Path, folder: Path) -> str:
    return f"sqlite+aiosqlite:///{shutil.copy(migrated, folder / 'inbox.db')}"


def _emptied(url: str) -> str:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg2"), poolclass=NullPool)
    with engine.begin() as connection:
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
            hosts,
            requests,
            owner,
            outages,
            source_positions,
        ):
            connection.execute(delete(table))
    return url
