"""Waiting longer after each failure."""

from __future__ import annotations

import asyncio
import random
import time

_PAUSE_FIRST, _PAUSE_MOST = 0.2, 5.0


class Backoff:
    """How long to wait after so many failures in a row: twice as long each time, with jitter, at most 5 s."""

    def __init__(self) -> None:
        self.failures = 0
        self.until = 0.0

    def failed(self) -> float:
        """Count a failure, and return for how many seconds to wait."""
        longest = min(_PAUSE_FIRST * 2.0 ** min(self.failures, 10), _PAUSE_MOST)
        pause = longest * random.uniform(0.5, 1.0)  # noqa: S311
        self.failures += 1
        self.until = time.monotonic() + pause
        return pause

    def succeeded(self) -> None:
        """Begin with the shortest wait again."""
        self.failures, self.until = 0, 0.0

    async def wait(self) -> None:
        """Wait out what the last failure asked for."""
        await asyncio.sleep(max(0.0, self.until - time.monotonic()))
