"""What the users of an event loop share: opened by the first of them, closed after the last.

One registry for the inbox and for every upstream's client. Things belong to an event loop, because connections do.
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
    key: Hashable, open_thing: Callable[[], Awaitable[T]], close_thing: Callable[[T], Awaitable[None]]
) -> AbstractAsyncContextManager[T]:
    """Use the thing that goes by this key on the running event loop.

    What opening it raises, all who wait for it learn together.

    :param key: says what it is; the two functions are those of its first user.
    """
    of_loop = _shared.setdefault(asyncio.get_running_loop(), {})
    return of_loop.setdefault(key, _Shared(open_thing, close_thing))


class _Shared(Generic[T]):
    """A thing and the number of its users. Waits use it for as long as they last: a use holds nothing of its own."""

    __slots__ = ("_close", "_open", "_opening", "_users")

    def __init__(
        self, open_thing: Callable[[], Awaitable[T]], close_thing: Callable[[T], Awaitable[None]]
    ) -> None:
        self._open = open_thing
        self._close = close_thing
        self._users = 0
        self._opening: asyncio.Task[T]

    async def __aenter__(self) -> T:
        if self._users == 0:
            # In a context of its own: it outlives the trigger that happens to come first.
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
            del self._opening  # it would keep the event loop, by which this object is found
            _closing.add(closing)
            closing.add_done_callback(_closing.discard)
            await asyncio.shield(closing)  # Airflow cancels a trigger again and again while it leaves


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, _Shared[Any]]] = WeakKeyDictionary()
_closing: set[asyncio.Task[None]] = set()  # asyncio itself keeps no strong reference to a task


async def _awaited(open_thing: Callable[[], Awaitable[T]]) -> T:
    return await open_thing()


async def _close(opening: asyncio.Task[T], close_thing: Callable[[T], Awaitable[None]]) -> None:
    opening.cancel()  # when it is under way still
    await asyncio.wait([opening])
    if not opening.cancelled() and opening.exception() is None:
        await close_thing(opening.result())
