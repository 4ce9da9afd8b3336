"""The inbox object, and the function that shares one inbox object within an event loop."""

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
from deferrable_ops.inbox.hosts import Hosts
from deferrable_ops.inbox.outages import OutageRows
from deferrable_ops.inbox.owner import Owner
from deferrable_ops.inbox.requests import Requests
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
"""With this retry timeout, calls are retried without end.

Triggers use this retry timeout, so that an outage of the inbox only delays a task, at most until Airflow's own
deadline for the task.
"""


class Inbox:
    """Reads and writes the inbox, for the code that runs on one event loop.

    :param url: the database URL, ``sqlite+aiosqlite://...`` or ``postgresql+asyncpg://...``
    :param read_url: a function that returns the current database URL, and is called when the database rejects the
        login. If `read_url` is None, the URL is not read again.
    :param retry_timeout: how many seconds a read or write is retried while the database does not answer, before
        :exc:`~deferrable_ops.exceptions.InboxUnavailable` is raised.
    """

    def __init__(self, url: str, *, retry_timeout: float, read_url: Callable[[], str] | None = None) -> None:
        self.database = Database(url, retry_timeout, read_url)
        self.owner = Owner(self.database)
        self.keys = Keys(self.database)
        self.waits = Waits(self.database, self.keys, self.owner)
        self.launches = Launches(self.database, self.owner)
        self.callbacks = Callbacks(self.database)
        self.cancellations = Cancellations(self.database, self.owner)
        self.endpoints = Endpoints(self.database)
        self.events = Events(self.database)
        self.channels = Channels(self.database)
        self.daemons = Daemons(self.database)
        self.requests = Requests(self.database, self.owner)
        self.hosts = Hosts(self.database)
        self.outages = OutageRows(self.database)
        self.retention = Retention(self.database)
        self.watcher = Watcher(self.database, self.waits, self.endpoints)
        self.feed = Feed(self.database, self.events, self.watcher)

    @classmethod
    async def open(
        cls, url: str | Callable[[], str], *, retry_timeout: float, first_backoff: float = _FIRST_BACKOFF
    ) -> Inbox:
        """Connect to the database, and create or upgrade the inbox's tables.

        :param url: the database URL, or a function that reads the URL from the settings.
        :param retry_timeout: how many seconds a read or write is retried while the database does not answer. If
            `retry_timeout` is infinite, opening the inbox is also retried after an error that a user must correct.
        :param first_backoff: the longest pause in seconds before the first retry, if the error lasts until a user
            corrects something. The pause doubles with each retry, up to 30 s.
        :raises DeploymentError: if the database URL is invalid, the database driver is missing, the database refused
            access, or this release cannot use the inbox's tables.
        :raises InboxUnavailable: if the database did not answer within the retry timeout.
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

    async def check(self) -> None:
        """Check that this release can read the tables and write to them.

        :raises DeploymentError: if the database refused access, or if the version of the tables does not fit this
            release.
        :raises InboxError: if the inbox cannot be read or written.
        """
        await migrate(self.database)
        await self.waits.find(limit=1)
        await self.database.try_lock("check", 0.0)

    async def close(self) -> None:
        """Stop the watcher and the feed, wait for running writes, and close every database connection."""
        await self.feed.close()
        await self.watcher.close()
        await self.database.close()


given_inbox: ContextVar[Inbox | None] = ContextVar("given_inbox", default=None)
"""An inbox that replaces the inbox of the setting ``inbox_url``, for tests."""


def use_inbox(*, retry_timeout: float) -> AbstractAsyncContextManager[Inbox]:
    """Open the inbox that the setting ``inbox_url`` names, for a ``with`` block.

    All ``with`` blocks on the same event loop with the same `retry_timeout` share one inbox object. The inbox is closed
    at the end of the last ``with`` block.

    :raises ConfigurationError: if the setting ``inbox_url`` is invalid, or if the database driver is missing.
    :raises InboxUnavailable: if the database did not answer within the timeout. All callers that wait for the inbox get
        this error.
    """
    if (given := given_inbox.get()) is not None:
        return nullcontext(given)
    return share(
        ("inbox", retry_timeout),
        lambda: Inbox.open(settings.inbox_url, retry_timeout=retry_timeout),
        Inbox.close,
    )
