"""Runs each check that is not a coroutine in a thread. If a check hangs, its thread cannot be killed."""

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
    """Too many checks hang in threads of this process, so no further check is started."""


async def call_in_thread(
    function: Callable[[], Any], timeout: float, *, always: bool = False, max_hanging: int = MAX_HANGING
) -> Any:
    """Call a function in a thread. Return the function's return value, or raise its exception, including SystemExit.

    At most 64 calls run at once. Further calls wait, and the timeout of a call begins when the call is started. After
    a timeout, the thread of the call continues, but another call can be started.

    :param timeout: the timeout of the call, in seconds.
    :param always: whether the function is called even if too many calls hang.
    :param max_hanging: if this many earlier calls hang, no further call is started.
    :raises TimeoutError: if the function did not return within `timeout` seconds.
    :raises TooManyHangingChecks: if at least `max_hanging` earlier calls have timed out and still occupy their
        threads.
    """
    loop = asyncio.get_running_loop()
    async with _slots.setdefault(loop, asyncio.Semaphore(MAX_RUNNING)):
        if len(_hanging) >= max_hanging and not always:
            raise TooManyHangingChecks(
                f"{len(_hanging)} checks have not returned within their check_timeout, but at most {max_hanging} such "
                "checks are allowed; restart this triggerer, and give each call inside these checks a timeout"
            )
        returned: asyncio.Future[Any] = loop.create_future()
        # The thread needs this context, because Airflow selects the task's log by the context.
        call = _Call(functools.partial(copy_context().run, function), loop, returned)
        _submit(call)
        try:
            async with asyncio.timeout(timeout):
                return await returned
        finally:
            call.abandon()


class _Call:
    """One call of a function in a thread. The result of the call is awaited on an event loop."""

    __slots__ = ("_function", "_has_ended", "_loop", "_returned")

    def __init__(
        self, function: Callable[[], Any], loop: asyncio.AbstractEventLoop, returned: asyncio.Future[Any]
    ) -> None:
        self._function = function
        self._loop = loop
        self._returned = returned
        self._has_ended = False

    def abandon(self) -> None:
        """Count the call as hanging, unless the function has returned."""
        with _counting:
            if not self._has_ended:
                _hanging.add(self)

    def run(self) -> None:
        """Call the function, and pass its return value or its exception to the event loop."""
        try:
            value, error = self._function(), None
        except BaseException as raised:
            value, error = None, raised
        with _counting:
            self._has_ended = True
            _hanging.discard(self)
        # A RuntimeError means that the event loop is closed.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(_set_outcome, self._returned, value, error)


_hanging: set[_Call] = set()
_counting = threading.Lock()
_calls: SimpleQueue[_Call] = SimpleQueue()
# The number of threads that wait for a call.
_idle = threading.Semaphore(0)


def _submit(call: _Call) -> None:
    # Threads are reused, because starting a thread blocks the event loop. They are daemon threads, because the threads
    # of an executor would prevent the process from exiting.
    _calls.put(call)
    if not _idle.acquire(blocking=False):
        threading.Thread(target=_run_calls, name="deferrable-ops check", daemon=True).start()


def _run_calls() -> None:
    while True:
        _calls.get().run()
        _idle.release()


def _set_outcome(returned: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    # The caller timed out or was cancelled.
    if returned.done():
        return
    if error is None:
        returned.set_result(value)
    # A future does not accept StopIteration.
    elif isinstance(error, StopIteration):
        returned.set_exception(RuntimeError(f"StopIteration: {error}"))
    else:
        returned.set_exception(error)
