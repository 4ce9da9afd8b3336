"""The inbox object, and sharing it within a process."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar

from deferrable_ops import settings
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

NO_RETRY_TIMEOUT = float("inf")
"""Retry without end. For triggers: an outage only delays a wait, which Airflow's own deadline bounds."""


class Inbox:
    """The inbox, for one event loop.

    :param url: ``sqlite+aiosqlite://...`` or ``postgresql+asyncpg://...``
    :param retry_timeout: how many seconds a read or write is retried while the database does not answer, before
        :exc:`~deferrable_ops.exceptions.InboxUnavailable` is raised.
    """

    def __init__(self, url: str, *, retry_timeout: float) -> None:
        self.database = Database(url, retry_timeout)
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
    async def open(cls, url: str, *, retry_timeout: float) -> Inbox:
        """Connect, and upgrade the tables to the newest schema.

        :raises ConfigurationError: the URL is invalid, its driver is missing, or the database refused access.
        :raises InboxUnavailable: the database does not answer.
        """
        inbox = cls(url, retry_timeout=retry_timeout)
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
    """Use the inbox of the settings: one is shared by all users with the same timeout on this event loop.

    It is closed after the last of them.

    :raises ConfigurationError: the setting ``inbox_url`` is invalid, or its driver is missing.
    :raises InboxUnavailable: the database did not answer within the timeout; all waiting callers fail together.
    """
    if (given := given_inbox.get()) is not None:
        return nullcontext(given)
    return share(
        ("inbox", retry_timeout),
        lambda: Inbox.open(settings.inbox_url(), retry_timeout=retry_timeout),
        Inbox.close,
    )
