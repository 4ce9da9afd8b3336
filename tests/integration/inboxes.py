"""Inboxes in files, which several processes or event loops of a test can open."""

from __future__ import annotations

from pathlib import Path

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.inbox import given_inbox


async def open_inbox(folder: Path) -> Inbox:
    """Open the inbox of a test, for what is run in this context."""
    inbox = await Inbox.open(f"sqlite+aiosqlite:///{folder / 'inbox.db'}", retry_timeout=60)
    given_inbox.set(inbox)
    return inbox
