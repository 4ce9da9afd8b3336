"""The inbox as the rest of the library uses it, and how the parts of a process share one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import dataclass
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


@dataclass(slots=True)
class _Shared:
    opening: asyncio.Task[Inbox]
    users: int = 0


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[float, _Shared]] = WeakKeyDictionary()
_closing: set[asyncio.Task[None]] = set()  # asyncio itself keeps no strong reference to a task


@asynccontextmanager
async def use_inbox(*, patience: float) -> AsyncIterator[Inbox]:
    """Use the inbox of the settings: one for all users of one patience on this event loop, closed after the last.

    :raises ConfigurationError: the setting ``inbox_url`` or its driver is not usable.
    :raises InboxUnavailable: the database did not answer within the patience. All who wait for it learn it together.
    """
    of_loop = _shared.setdefault(asyncio.get_running_loop(), {})
    shared = of_loop.get(patience)
    if shared is None:
        # In a context of its own: it outlives the trigger that happens to come first.
        opening = asyncio.create_task(Inbox.open(settings.inbox_url(), patience=patience), context=Context())
        shared = of_loop[patience] = _Shared(opening)
    shared.users += 1
    try:
        yield await asyncio.shield(shared.opening)
    finally:
        shared.users -= 1
        if shared.users == 0:
            of_loop.pop(patience)
            closing = asyncio.create_task(_close(shared.opening))
            _closing.add(closing)
            closing.add_done_callback(_closing.discard)
            await asyncio.shield(closing)  # Airflow cancels a trigger again and again while it leaves


async def _close(opening: asyncio.Task[Inbox]) -> None:
    opening.cancel()  # when it is under way still
    await asyncio.wait([opening])
    if not opening.cancelled() and opening.exception() is None:
        await opening.result().close()
