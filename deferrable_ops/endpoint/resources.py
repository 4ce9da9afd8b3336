"""What the endpoint's routes and background jobs share: the inbox, the settings and the reader of request bodies."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from deferrable_ops import settings
from deferrable_ops.endpoint.body import BodyReader
from deferrable_ops.inbox import Inbox, use_inbox
from deferrable_ops.inbox.database.shared_call import SharedCall

RETRY_TIMEOUT: Final = 2.0
"""For how many seconds a request retries while the inbox is unavailable."""


class LazyInbox:
    """The endpoint's inbox, opened at its first use, so that the server can start while the database is down.

    Concurrent callers share one attempt to open the inbox. If opening the inbox fails, the next caller tries to open it
    again.
    """

    def __init__(self) -> None:
        self._open = SharedCall(self._enter)
        self.opened: Inbox | None = None
        """The inbox; None before its first use."""
        self._exit = AsyncExitStack()

    async def get(self) -> Inbox:
        """Return the inbox.

        :raises ConfigurationError: if the setting ``inbox_url`` or its driver is not usable.
        :raises InboxUnavailable: if the database did not answer within :data:`RETRY_TIMEOUT`.
        """
        return self.opened or await self._open()

    async def close(self) -> None:
        """Release the inbox."""
        self.opened = None
        await self._open.cancel()
        await self._exit.aclose()

    async def _enter(self) -> Inbox:
        self.opened = await self._exit.enter_async_context(use_inbox(retry_timeout=RETRY_TIMEOUT))
        return self.opened


class CachedSettings:
    """The settings that the endpoint needs to handle requests.

    The settings are read once, because reading Airflow's configuration for each request is too slow.
    """

    @cached_property
    def max_payload_bytes(self) -> int:
        """The size of the largest request body that the endpoint accepts, in bytes."""
        return settings.max_payload_bytes()

    @cached_property
    def auth_token(self) -> str | None:
        """The static bearer token of the route that sets a task's state; None if no static token is configured."""
        return settings.auth_token()


@dataclass(frozen=True, slots=True)
class Resources:
    """The objects that the routes of one endpoint share: its inbox, its settings and its reader of request bodies."""

    inbox: LazyInbox = field(default_factory=LazyInbox)
    settings: CachedSettings = field(default_factory=CachedSettings)
    bodies: BodyReader = field(default_factory=BodyReader)
