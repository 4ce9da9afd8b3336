"""What all unit tests share: an inbox in a SQLite file, whose tables are created once per session."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deferrable_ops.inbox import Inbox
from deferrable_ops.outages import outages


@pytest.fixture(scope="session")
def empty_inbox_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the inbox's tables, to be copied."""
    path = tmp_path_factory.mktemp("inbox") / "inbox.db"

    async def create() -> None:
        inbox = await Inbox.open(f"sqlite+aiosqlite:///{path}", retry_timeout=5)
        await inbox.close()

    asyncio.run(create())
    return path


@pytest.fixture(autouse=True)
def no_outages() -> Iterator[None]:
    """End the outages that the test reported, because all tests of a process share them."""
    yield
    for outage in outages.active():
        outages.recovered(outage.source)


@pytest.fixture
def inbox_file(empty_inbox_file: Path, tmp_path: Path) -> Path:
    """The test's own SQLite file with the inbox's tables."""
    return Path(shutil.copy(empty_inbox_file, tmp_path / "inbox.db"))
