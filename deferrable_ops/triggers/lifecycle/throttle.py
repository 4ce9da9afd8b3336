"""Taking turns at what thousands of triggers would otherwise do at the same moment."""

from __future__ import annotations

import asyncio
from collections import deque
from weakref import WeakKeyDictionary


class Turns:
    """Lets so many at once, in each event loop, in the order in which they came.

    ::

        with turns.turn() as begins:
            await begins
            ...

    :param at_once: how many.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, _Line] = WeakKeyDictionary()

    def turn(self) -> Turn:
        """Return the next turn."""
        loop = asyncio.get_running_loop()
        if loop not in self._of_loop:
            self._of_loop[loop] = _Line(self._at_once)
        return Turn(self._of_loop[loop])


class Turn:
    """A turn, from its beginning until the end of the ``with`` statement; what that gives is done when it begins."""

    # Who waits for a semaphore holds two coroutines for that, 0.5 kB, and thousands wait.
    __slots__ = ("_begins", "_line")

    def __init__(self, line: _Line) -> None:
        self._line = line

    def __enter__(self) -> asyncio.Future[None]:
        """Line up."""
        self._begins: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.join(self._begins)
        return self._begins

    def __exit__(self, *_: object) -> None:
        """Let the next one begin, unless this has not begun: who is cancelled while waiting gives up the turn."""
        if not self._begins.cancel() and not self._begins.cancelled():
            self._line.go_on()


class _Line:
    """Those who wait for a turn."""

    def __init__(self, free: int) -> None:
        self._free = free
        self._waiting: deque[asyncio.Future[None]] = deque()

    def join(self, begins: asyncio.Future[None]) -> None:
        self._waiting.append(begins)
        self._hand_out()

    def go_on(self) -> None:
        self._free += 1
        self._hand_out()

    def _hand_out(self) -> None:
        while self._free and self._waiting:
            begins = self._waiting.popleft()
            if not begins.done():
                begins.set_result(None)
                self._free -= 1
