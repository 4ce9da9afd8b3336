"""The inbox object, and sharing it within a process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar

from deferrable_ops import settings
from deferrable_ops.backoff import Backoff
from deferrable_ops.exceptions import DeploymentError
from deferrable_ops.inbox.daemons import Daemons
from deferrable_ops.inbox.database.database import Database
from deferrable_ops.inbox.database.migrate import migrate
from deferrable_ops.inbox.events.channels import Channels
from deferrable_ops.inbox.events.events import Events
from deferrable_ops.inbox.events.feed import Feed
from deferrable_ops.inbox.retention import Retention
from deferrable_ops.inbox.waits.callbacks import Callbacks
from deferrable_ops.inbox.waits.cancellations import Cancellations
from deferrable_ops.inbox.waits.endpoints import Endpoints
from deferrable_ops.inbox.waits.keys import Keys
from deferrable_ops.inbox.waits.launches import Launches
from deferrable_ops.inbox.waits.waits import Waits
from deferrable_ops.inbox.watcher import Watcher
from deferrable_ops.shared import share

log = logging.getLogger(__name__)

_FIRST_BACKOFF, _MAX_BACKOFF = 1.0, 30.0
NO_RETRY_TIMEOUT = float("inf")
"""Retry without end. Triggers use this: an outage only delays a wait, and Airflow's own deadline still applies."""


class Inbox:
    """The inbox, for one event loop.

    :param url: ``sqlite+aiosqlite://...`` or ``postgresql+asyncpg://...``
    :param read_url: called to read the URL again when the database rejects the login.
    :param retry_timeout: how many seconds a read or write is retried while the database does not answer, before
        :exc:`~deferrable_ops.exceptions.InboxUnavailable` is raised.
    """

    def __init__(self, url: str, *, retry_timeout: float, read_url: Callable[[], str] | None = None) -> None:
        self.database = Database(url, retry_timeout, read_url)
        self.keys = Keys(self.database)
        self.waits = Waits(self.database, self.keys)
        self.launches = Launches(self.database)
        self.callbacks = Callbacks(self.database)
        self.cancellations = Cancellations(self.database)
        self.endpoints = Endpoints(self.database)
        self.events = Events(self.database)
        self.channels = Channels(self.database)
        self.daemons = Daemons(self.database)
        self.retention = Retention(self.database)
        self.watcher = Watcher(self.database, self.waits, self.endpoints)
        self.feed = Feed(self.database, self.events, self.watcher)

    @classmethod
    async def open(
        cls, url: str | Callable[[], str], *, retry_timeout: float, first_backoff: float = _FIRST_BACKOFF
    ) -> Inbox:
        """Connect, and create or upgrade the tables.

        :param url: the URL, or a function that reads it from the settings.
        :param retry_timeout: as for :class:`Inbox`. If it is infinite, opening is also retried while the deployment
            is set up wrongly.
        :param first_backoff: seconds until the first of these retries. The pause doubles with each retry, up to 30 s.
        :raises DeploymentError: the URL is invalid, its driver is missing, the database refused access, or this release
            cannot use the tables.
        :raises InboxUnavailable: the database did not answer within the retry timeout.
        """
        backoff = Backoff(first_pause=first_backoff, longest_pause=_MAX_BACKOFF)
        while True:
            try:
                return await cls._open(url, retry_timeout)
            except DeploymentError as error:
                if retry_timeout != NO_RETRY_TIMEOUT:
                    raise
                pause = backoff.failed()
                log.error("The inbox cannot be used; retrying in %.1f s: %s", pause, error)
            await asyncio.sleep(pause)

    @classmethod
    async def _open(cls, url: str | Callable[[], str], retry_timeout: float) -> Inbox:
        if isinstance(url, str):
            inbox = cls(url, retry_timeout=retry_timeout)
        else:
            inbox = cls(await asyncio.to_thread(url), retry_timeout=retry_timeout, read_url=url)
        try:
            await migrate(inbox.database)
        except BaseException:
            await inbox.close()
            raise
        return inbox

    async def close(self) -> None:
        """Stop watching, wait for running writes, and close every connection."""
        await self.feed.close()
        await self.watcher.close()
        await self.database.close()


given_inbox: ContextVar[Inbox | None] = ContextVar("given_inbox", default=None)
"""An inbox that replaces the one in the settings, for tests."""


def use_inbox(*, retry_timeout: float) -> AbstractAsyncContextManager[Inbox]:
    """Use the inbox of the settings. Users on this event loop with the same timeout share one inbox.

    The inbox is closed after its last user.

    :raises ConfigurationError: the setting ``inbox_url`` is invalid, or its driver is missing.
    :raises InboxUnavailable: the database did not answer within the timeout. All callers that wait get this error.
    """
    if (given := given_inbox.get()) is not None:
        return nullcontext(given)
    return share(
        ("inbox", retry_timeout),
        lambda: Inbox.open(settings.inbox_url, retry_timeout=retry_timeout),
        Inbox.close,
    )
