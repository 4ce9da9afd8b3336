"""Taking turns at what thousands of triggers would otherwise do at the same moment."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary


class Turns:
    """Lets so many at once, in each event loop.

    :param at_once: how many.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    def turn(self) -> asyncio.Semaphore:
        """Return what is to be held during a turn, by ``async with``."""
        return self._of_loop.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self._at_once))
