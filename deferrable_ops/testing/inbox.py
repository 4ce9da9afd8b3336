"""An in-memory inbox for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.inbox import given_inbox


@asynccontextmanager
async def memory_inbox() -> AsyncIterator[Inbox]:
    """Use a new in-memory inbox for the code that runs inside the ``with`` block.

    The in-memory inbox behaves like a real inbox, but is deleted at the end of the block. A test with an in-memory
    inbox cannot test restarts, because a restart would lose the in-memory inbox.
    """
    inbox = await Inbox.open("sqlite+aiosqlite://", retry_timeout=5)
    given = given_inbox.set(inbox)
    try:
        yield inbox
    finally:
        given_inbox.reset(given)
        await inbox.close()
