"""Fixtures of the tests of the base of all triggers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from deferrable_ops.inbox import Inbox
from deferrable_ops.testing import memory_inbox
from deferrable_ops.triggers.lifecycle import background


@pytest.fixture(autouse=True)
def no_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not start the tasks that a triggerer runs in the background."""
    monkeypatch.setattr(background, "start", lambda: None)


@pytest.fixture
async def inbox() -> AsyncIterator[Inbox]:
    async with memory_inbox() as inbox:
        yield inbox
