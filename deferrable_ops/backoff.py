"""Exponential backoff. Every retry loop of the library uses the class `Backoff`."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final

FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 5.0
_MAX_DOUBLINGS: Final = 20


class Backoff:
    """Computes the pauses between retries.

    A pause is a random time between half of an upper limit and this limit. Each consecutive failure doubles the limit.

    :param first_pause: the upper limit of the random pause after the first failure, in seconds.
    :param longest_pause: the upper limit of every pause, in seconds.
    """

    __slots__ = ("_first_pause", "_longest_pause", "failures", "until")

    def __init__(self, *, first_pause: float = FIRST_PAUSE, longest_pause: float = LONGEST_PAUSE) -> None:
        self._first_pause = first_pause
        self._longest_pause = longest_pause
        self.failures = 0
        self.until = 0.0

    def failed(self) -> float:
        """Count a failure and return the pause before the next attempt, in seconds."""
        longest = min(self._first_pause * 2.0 ** min(self.failures, _MAX_DOUBLINGS), self._longest_pause)
        pause = longest * random.uniform(0.5, 1.0)  # noqa: S311
        self.failures += 1
        self.until = time.monotonic() + pause
        return pause

    def succeeded(self) -> None:
        """Record a successful attempt, so that the pause after the next failure is the first pause again."""
        self.failures, self.until = 0, 0.0

    async def wait(self) -> None:
        """Sleep until the pause that began with the last failure is over."""
        await asyncio.sleep(max(0.0, self.until - time.monotonic()))
