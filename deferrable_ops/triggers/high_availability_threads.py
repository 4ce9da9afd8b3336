"""Threads for checks that are no coroutines: they may hang, and a thread cannot be killed."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Final
from weakref import WeakKeyDictionary

MOST_AT_ONCE: Final = 64
MOST_LEFT_OVER: Final = 200

_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
_left_over: set[threading.Thread] = set()
_counting = threading.Lock()


class TooManyLeftOver(Exception):
    """So many checks hang in this process that no more are tried."""


async def call_in_thread(function: Callable[[], Any], timeout: float, *, always: bool = False) -> Any:
    """Return what a function returns, or raise what it raises, SystemExit included.

    It has a thread of its own, because an executor's threads keep a process that is to end from ending. At most 64 run
    at once; the others wait for their turn, which `timeout` does not count. One that does not return in time is left
    to itself: its turn ends, but not the thread.

    :param timeout: seconds.
    :param always: even when too many are left over.
    :raises TimeoutError: it did not return in time.
    :raises TooManyLeftOver: 200 earlier ones have not returned yet.
    """
    loop = asyncio.get_running_loop()
    async with _turns.setdefault(loop, asyncio.Semaphore(MOST_AT_ONCE)):
        if len(_left_over) >= MOST_LEFT_OVER and not always:
            raise TooManyLeftOver(
                f"{len(_left_over)} checks have not returned within their check_timeout and still occupy threads of "
                "this triggerer; restart it, and give them timeouts of their own"
            )
        returned: asyncio.Future[Any] = loop.create_future()
        # By its context Airflow tells whose log is written to.
        thread = _Thread(functools.partial(copy_context().run, function), loop, returned)
        thread.start()
        try:
            async with asyncio.timeout(timeout):
                return await returned
        finally:
            thread.leave()


class _Thread(threading.Thread):
    def __init__(
        self, function: Callable[[], Any], loop: asyncio.AbstractEventLoop, returned: asyncio.Future[Any]
    ) -> None:
        super().__init__(name="deferrable-ops check", daemon=True)
        self._function = function
        self._loop = loop
        self._returned = returned
        self._has_ended = False

    def leave(self) -> None:
        """Count it among those left over, unless it has ended."""
        with _counting:
            if not self._has_ended:
                _left_over.add(self)

    def run(self) -> None:
        try:
            value, error = self._function(), None
        except BaseException as raised:
            value, error = None, raised
        with _counting:
            self._has_ended = True
            _left_over.discard(self)
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(_tell, self._returned, value, error)


def _tell(returned: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if returned.done():  # nobody waits any more
        return
    if error is None:
        returned.set_result(value)
    elif isinstance(error, StopIteration):  # which a future refuses
        returned.set_exception(RuntimeError(f"StopIteration: {error}"))
    else:
        returned.set_exception(error)
