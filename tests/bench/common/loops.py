"""An event loop that knows how long it was blocked."""

from __future__ import annotations

import asyncio
import gc
import selectors
import time

_FULL = 2  # of Python's generations, the one that takes everything


class BlockedLoop(asyncio.SelectorEventLoop):
    """A loop that notes how long nothing else could happen on it: from one look for events to the next.

    A ticker on the loop would see the same, to the length of its tick, and would cost CPU time itself.
    """

    def __init__(self) -> None:
        self.watch = BlockWatch()
        super().__init__(self.watch)


class BlockWatch(selectors.DefaultSelector):
    """Tells one look for events from the next.

    :param longest: seconds between two of them.
    :param longest_working: the same without the garbage collections in between.
    :param collections: how many full collections there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self._looked_at = time.perf_counter()
        self._collecting_since = self._collected = 0.0
        self.restart()
        gc.callbacks.append(self._note_collection)

    def restart(self) -> None:
        """Forget what was noted."""
        self.longest = self.longest_working = 0.0
        self.collections = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Look for events, and note how long they had to wait for it."""
        blocked = time.perf_counter() - self._looked_at
        self.longest = max(self.longest, blocked)
        self.longest_working = max(self.longest_working, blocked - self._collected)
        found = super().select(timeout)
        self._looked_at, self._collected = time.perf_counter(), 0.0
        return found

    def _note_collection(self, phase: str, about: dict[str, int]) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._collecting_since = now
            return
        self._collected += now - self._collecting_since
        self.collections += about["generation"] == _FULL
