"""Reference-counted resources: the first user opens a resource, and the resource is closed after its last user.

The shared resources are the inbox and the clients of external systems. A resource belongs to one event loop, because
its network connections belong to one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


def share(
    key: Hashable, open_resource: Callable[[], Awaitable[T]], close_resource: Callable[[T], Awaitable[None]]
) -> AbstractAsyncContextManager[T]:
    """Return a context manager that returns the shared resource with a given key on the running event loop.

    If opening fails, the error is raised to every user that waits for the resource.

    :param key: the identifier of the resource: all users with the same key share one resource.
    :param open_resource: a function that opens the resource for the first user.
    :param close_resource: a function that closes the resource after the last user. Only the functions that the first
        user passed are called.
    """
    of_loop = _shared.setdefault(asyncio.get_running_loop(), {})
    return of_loop.setdefault(key, _Shared(open_resource, close_resource))


class _Shared(Generic[T]):
    """A resource and the number of its users.

    Thousands of triggers use one resource at the same time. To save memory, all users of a resource enter the same
    :class:`_Shared` object.
    """

    __slots__ = ("_close", "_open", "_opening", "_users")

    def __init__(
        self, open_resource: Callable[[], Awaitable[T]], close_resource: Callable[[T], Awaitable[None]]
    ) -> None:
        self._open = open_resource
        self._close = close_resource
        self._users = 0
        self._opening: asyncio.Task[T]

    async def __aenter__(self) -> T:
        if self._users == 0:
            # Use an empty context instead of the first trigger's, because the resource outlives that trigger.
            self._opening = asyncio.create_task(_awaited(self._open), context=Context())
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
            closing = asyncio.create_task(_close(self._opening, self._close))
            # The task refers to the event loop. If this object kept the task, the loop would never be freed, although
            # the registry refers to the loop only weakly.
            del self._opening
            _closing.add(closing)
            closing.add_done_callback(_closing.discard)
            # Shield the closing, because Airflow may cancel a trigger more than once while the trigger ends.
            await asyncio.shield(closing)


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, _Shared[Any]]] = WeakKeyDictionary()
# Keeps the closing tasks alive, because asyncio refers to tasks only weakly.
_closing: set[asyncio.Task[None]] = set()


async def _awaited(open_resource: Callable[[], Awaitable[T]]) -> T:
    return await open_resource()


async def _close(opening: asyncio.Task[T], close_resource: Callable[[T], Awaitable[None]]) -> None:
    # Stop opening. If the resource is open already, this has no effect.
    opening.cancel()
    await asyncio.wait([opening])
    if not opening.cancelled() and opening.exception() is None:
        await close_resource(opening.result())
