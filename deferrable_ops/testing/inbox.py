"""An inbox in memory: quick, empty at first, gone afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.inbox import given_inbox


@asynccontextmanager
async def memory_inbox() -> AsyncIterator[Inbox]:
    """Give an inbox in memory to whatever runs inside the block.

    It keeps every promise but one: it dies with its process. So never test with it what a restart does.
    """
    inbox = await Inbox.open("sqlite+aiosqlite://", retry_timeout=5)
    given = given_inbox.set(inbox)
    try:
        yield inbox
    finally:
        given_inbox.reset(given)
        await inbox.close()
