"""The inbox as the rest of the library uses it, and how the parts of a process share one."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from weakref import WeakKeyDictionary

from deferrable_ops import settings
from deferrable_ops.inbox.callbacks import Callbacks
from deferrable_ops.inbox.cancellations import Cancellations
from deferrable_ops.inbox.database import Database
from deferrable_ops.inbox.endpoints import Endpoints
from deferrable_ops.inbox.keys import Keys
from deferrable_ops.inbox.launches import Launches
from deferrable_ops.inbox.migrate import migrate
from deferrable_ops.inbox.retention import Retention
from deferrable_ops.inbox.waits import Waits
from deferrable_ops.inbox.watcher import Watcher


class Inbox:
    """The inbox of one event loop.

    :param url: ``sqlite+aiosqlite://...`` or ``postgresql+asyncpg://...``
    :param patience: for how many seconds a database that does not answer is asked again before
        :exc:`~deferrable_ops.exceptions.InboxUnavailable` is raised.
    """

    def __init__(self, url: str, *, patience: float) -> None:
        self.database = Database(url, patience)
        self.keys = Keys(self.database)
        self.waits = Waits(self.database, self.keys)
        self.launches = Launches(self.database)
        self.callbacks = Callbacks(self.database)
        self.cancellations = Cancellations(self.database)
        self.endpoints = Endpoints(self.database)
        self.retention = Retention(self.database)
        self.watcher = Watcher(self.database, self.waits, self.endpoints)

    @classmethod
    async def open(cls, url: str, *, patience: float) -> Inbox:
        """Connect, and bring the tables to the newest schema.

        :raises ConfigurationError: the URL or its driver is not usable.
        :raises InboxUnavailable: the database does not answer.
        """
        inbox = cls(url, patience=patience)
        try:
            await migrate(inbox.database)
        except BaseException:
            await inbox.close()
            raise
        return inbox

    async def close(self) -> None:
        """Stop watching, let the writes under way end, and close every connection."""
        await self.watcher.close()
        await self.database.close()


class _SharedInbox:
    """The inbox of one event loop and one patience: opened by its first user, closed after the last.

    Every wait uses it for as long as it lasts, so a use holds nothing of its own.
    """

    __slots__ = ("_opening", "_patience", "_users")

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._users = 0
        self._opening: asyncio.Task[Inbox]

    async def __aenter__(self) -> Inbox:
        if self._users == 0:
            opening = Inbox.open(settings.inbox_url(), patience=self._patience)
            # In a context of its own: it outlives the trigger that happens to come first.
            self._opening = asyncio.create_task(opening, context=Context())
        self._users += 1
        try:
            return await asyncio.shield(self._opening)
        except BaseException:
            await self._leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        await self._leave()

    async def _leave(self) -> None:
        self._users -= 1
        if self._users == 0:
            closing = asyncio.create_task(_close(self._opening))
            del self._opening  # it would keep the event loop, by which this object is found
            _closing.add(closing)
            closing.add_done_callback(_closing.discard)
            await asyncio.shield(closing)  # Airflow cancels a trigger again and again while it leaves


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[float, _SharedInbox]] = WeakKeyDictionary()
_closing: set[asyncio.Task[None]] = set()  # asyncio itself keeps no strong reference to a task


def use_inbox(*, patience: float) -> AbstractAsyncContextManager[Inbox]:
    """Use the inbox of the settings: one for all users of one patience on this event loop, closed after the last.

    :raises ConfigurationError: the setting ``inbox_url`` or its driver is not usable.
    :raises InboxUnavailable: the database did not answer within the patience. All who wait for it learn it together.
    """
    of_loop = _shared.setdefault(asyncio.get_running_loop(), {})
    return of_loop.setdefault(patience, _SharedInbox(patience))


async def _close(opening: asyncio.Task[Inbox]) -> None:
    opening.cancel()  # when it is under way still
    await asyncio.wait([opening])
    if not opening.cancelled() and opening.exception() is None:
        await opening.result().close()
