"""One registry of what the triggers of a process share: opened by its first user, closed after the last.

Things belong to an event loop, because their connections do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


@dataclass(slots=True)
class _Entry:
    users: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    stack: AsyncExitStack | None = None
    thing: Any = None


_registry: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, _Entry]] = WeakKeyDictionary()


@asynccontextmanager
async def share(key: Hashable, enter: Callable[[], AbstractAsyncContextManager[T]]) -> AsyncIterator[T]:
    """Use the thing that goes by this key on the running event loop.

    :param enter: returns the context manager that opens and closes it; called for the first user only.
    """
    entries = _registry.setdefault(asyncio.get_running_loop(), {})
    entry = entries.setdefault(key, _Entry())
    entry.users += 1
    try:
        async with entry.lock:
            if entry.stack is None:
                stack = AsyncExitStack()
                entry.thing = await stack.enter_async_context(enter())
                entry.stack = stack
        yield entry.thing
    finally:
        entry.users -= 1
        if entry.users == 0:
            entries.pop(key, None)
            if entry.stack is not None:
                await entry.stack.aclose()
