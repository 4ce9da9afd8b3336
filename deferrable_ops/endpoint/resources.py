"""The objects that the endpoint's routes and jobs share: the inbox, the settings and the reader of request bodies."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from deferrable_ops import settings
from deferrable_ops.endpoint.body import BodyReader
from deferrable_ops.exceptions import UnknownKey
from deferrable_ops.inbox import Inbox, use_inbox
from deferrable_ops.inbox.database.shared_call import SharedCall

log = logging.getLogger(__name__)

RETRY_TIMEOUT: Final = 2.0
"""For how many seconds a request repeats its calls to the inbox while the inbox is unavailable."""


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

        :raises ConfigurationError: if the setting ``inbox_url`` is invalid, or the database driver is not installed.
        :raises InboxUnavailable: if the database did not answer within :data:`RETRY_TIMEOUT`.
        """
        return self.opened or await self._open()

    async def close(self) -> None:
        """Release the inbox, if it is open."""
        self.opened = None
        await self._open.cancel()
        await self._exit.aclose()

    async def _enter(self) -> Inbox:
        self.opened = await self._exit.enter_async_context(use_inbox(retry_timeout=RETRY_TIMEOUT))
        return self.opened


class UnknownKeyLog:
    """Logs a warning about callback tokens whose signing key the inbox does not have.

    At most one warning is logged in `interval` seconds, so that forged tokens cannot fill the log.

    :param interval: the shortest time between two warnings in the log, in seconds.
    :param clock: a function that returns the time of a monotonic clock, in seconds.
    """

    def __init__(self, interval: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._next_at = float("-inf")
        self._unreported = 0

    def add(self, error: UnknownKey) -> None:
        """Count a request whose token has an unknown key.

        Log a warning if `interval` has passed since the last warning.
        """
        self._unreported += 1
        if self._clock() < self._next_at:
            return
        log.warning(
            "Answered %d requests with 404, because this endpoint's inbox does not have the keys of their tokens. For "
            "the last request (wait %s), the inbox does not have the key %s. Check that the endpoint and the "
            "triggerers have the same inbox_url",
            self._unreported,
            error.wait_id,
            error.key_id,
        )
        self._unreported = 0
        self._next_at = self._clock() + self._interval


class RetryAfter:
    """Computes the header ``Retry-After`` of a response with status 503: a random number of seconds that grows during
    an outage.

    With a constant number, all services would repeat their requests at the same moment when the outage is over.

    :param shortest: the upper limit of the header at the start of an outage, in seconds.
    :param longest: the upper limit of the header in a long outage, in seconds.
    :param clock: a function that returns the time of a monotonic clock, in seconds.
    """

    def __init__(
        self, shortest: float = 4.0, longest: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shortest = shortest
        self._longest = longest
        self._clock = clock
        self._since: float | None = None

    def failed(self) -> int:
        """Return the header's value for a request that failed, in seconds.

        The upper limit of the value is the time since the outage began, but never less than `shortest` and never more
        than `longest`.
        """
        now = self._clock()
        if self._since is None:
            self._since = now
        pause = min(max(now - self._since, self._shortest), self._longest)
        return random.randint(round(pause / 2), round(pause))  # noqa: S311

    def succeeded(self) -> None:
        """Record that a request succeeded, so the outage is over."""
        self._since = None


class CachedSettings:
    """The settings that the endpoint needs to handle requests.

    Each setting is read only once, because reading Airflow's configuration for each request would be too slow.
    """

    @cached_property
    def max_payload_bytes(self) -> int:
        """The size of the largest request body that the endpoint accepts, in bytes."""
        return settings.max_payload_bytes()

    @cached_property
    def auth_token(self) -> str | None:
        """The static bearer token of the route that sets a task's state, or None if no static token is configured."""
        return settings.auth_token()


@dataclass(frozen=True, slots=True)
class Resources:
    """The objects that the routes of one endpoint share: its inbox, its settings and its reader of request bodies."""

    inbox: LazyInbox = field(default_factory=LazyInbox)
    settings: CachedSettings = field(default_factory=CachedSettings)
    bodies: BodyReader = field(default_factory=BodyReader)
    unknown_keys: UnknownKeyLog = field(default_factory=UnknownKeyLog)
