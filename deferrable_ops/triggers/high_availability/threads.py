"""Threads for checks that are no coroutines: they may hang, and a thread cannot be killed."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, Final
from weakref import WeakKeyDictionary

MAX_RUNNING: Final = 64
MAX_HANGING: Final = 200

_slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


class TooManyHangingChecks(Exception):
    """So many checks hang in this process that no more are tried."""


async def call_in_thread(function: Callable[[], Any], timeout: float, *, always: bool = False) -> Any:
    """Return what a function returns, or raise what it raises, SystemExit included.

    At most 64 run at once; the others wait for their turn, which `timeout` does not count. One that does not return in
    time is left to itself: its turn ends, but not its thread.

    :param timeout: seconds.
    :param always: even when too many are left over.
    :raises TimeoutError: it did not return in time.
    :raises TooManyHangingChecks: 200 earlier ones have not returned yet.
    """
    loop = asyncio.get_running_loop()
    async with _slots.setdefault(loop, asyncio.Semaphore(MAX_RUNNING)):
        if len(_hanging) >= MAX_HANGING and not always:
            raise TooManyHangingChecks(
                f"{len(_hanging)} checks have not returned within their check_timeout and still occupy threads of "
                "this triggerer; restart it, and give them timeouts of their own"
            )
        returned: asyncio.Future[Any] = loop.create_future()
        # By its context Airflow tells whose log is written to.
        call = _Call(functools.partial(copy_context().run, function), loop, returned)
        _submit(call)
        try:
            async with asyncio.timeout(timeout):
                return await returned
        finally:
            call.leave()


class _Call:
    """One call of a function, for whose end somebody waits on an event loop."""

    __slots__ = ("_function", "_has_ended", "_loop", "_returned")

    def __init__(
        self, function: Callable[[], Any], loop: asyncio.AbstractEventLoop, returned: asyncio.Future[Any]
    ) -> None:
        self._function = function
        self._loop = loop
        self._returned = returned
        self._has_ended = False

    def leave(self) -> None:
        """Count it among those left over, unless it has ended."""
        with _counting:
            if not self._has_ended:
                _hanging.add(self)

    def run(self) -> None:
        """Call the function, and tell the event loop."""
        try:
            value, error = self._function(), None
        except BaseException as raised:
            value, error = None, raised
        with _counting:
            self._has_ended = True
            _hanging.discard(self)
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(_set_outcome, self._returned, value, error)


_hanging: set[_Call] = set()
_counting = threading.Lock()
_calls: SimpleQueue[_Call] = SimpleQueue()
_idle = threading.Semaphore(0)  # how many threads wait for a call


def _submit(call: _Call) -> None:
    # Threads are kept, because to start one holds up the event loop; and they are no executor's, whose threads keep a
    # process that is to end from ending.
    _calls.put(call)
    if not _idle.acquire(blocking=False):
        threading.Thread(target=_run_calls, name="deferrable-ops check", daemon=True).start()


def _run_calls() -> None:
    while True:
        _calls.get().run()
        _idle.release()


def _set_outcome(returned: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if returned.done():  # nobody waits any more
        return
    if error is None:
        returned.set_result(value)
    elif isinstance(error, StopIteration):  # which a future refuses
        returned.set_exception(RuntimeError(f"StopIteration: {error}"))
    else:
        returned.set_exception(error)
