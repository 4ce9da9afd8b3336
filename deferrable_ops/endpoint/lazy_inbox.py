"""The inbox of the endpoint, opened when a request or a chore first needs it: the server starts without."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from typing import Final

from deferrable_ops.inbox import Inbox, use_inbox
from deferrable_ops.inbox.database.shared_call import SharedCall

log = logging.getLogger(__name__)

RETRY_TIMEOUT: Final = 2.0
"""Seconds for which a request waits for an inbox that does not answer."""


class LazyInbox:
    """Opens the inbox once for all who ask; when that fails, the next who asks tries again."""

    def __init__(self) -> None:
        self._open = SharedCall(self._enter)
        self.opened: Inbox | None = None
        """The inbox; None until it was needed."""
        self._exit = AsyncExitStack()

    async def get(self) -> Inbox:
        """Return the inbox.

        :raises ConfigurationError: the setting ``inbox_url`` or its driver is not usable.
        :raises InboxUnavailable: the database does not answer.
        """
        return self.opened or await self._open()

    async def close(self) -> None:
        """Let go of the inbox."""
        self.opened = None
        await self._open.cancel()
        await self._exit.aclose()

    async def _enter(self) -> Inbox:
        self.opened = await self._exit.enter_async_context(use_inbox(retry_timeout=RETRY_TIMEOUT))
        return self.opened
