"""Inboxes in files, which several processes or event loops of a test can open."""

from __future__ import annotations

from pathlib import Path

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.inbox import given_inbox
from deferrable_ops.inbox.waits.launches import Launches


async def open_inbox(folder: Path) -> Inbox:
    """Open the inbox of a test, for what is run in this context. Launch claims are acquired quickly."""
    inbox = await Inbox.open(f"sqlite+aiosqlite:///{folder / 'inbox.db'}", retry_timeout=60)
    inbox.launches = Launches(inbox.database, inbox.owner, acquire_interval=0.05)
    given_inbox.set(inbox)
    return inbox
