"""Test doubles for the store and the listener of a Kafka upstream."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from deferrable_ops.upstreams.kafka.consumers import Batch


class Stored:
    """Stores batches in memory, in place of the inbox.

    :ivar problem: the error that storing raises.
    :ivar tries: how often storing was attempted.
    """

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.problem: Exception | None = None
        self.tries = 0
        self.threads: set[int] = set()

    async def __call__(self, batch: Batch) -> None:
        """Store a batch."""
        self.tries += 1
        self.threads.add(threading.get_ident())
        await asyncio.sleep(0)
        if self.problem is not None:
            raise self.problem
        self.batches.append(batch)

    @property
    def payloads(self) -> list[Any]:
        """The payloads of all events, in the order in which they were stored."""
        return [event.payload for batch in self.batches for event in batch.events]

    def resume_offsets(self, key: str) -> dict[str, int]:
        """Return the last resume offsets of a subscription."""
        return next((b.resume_offsets[key] for b in reversed(self.batches) if key in b.resume_offsets), {})

    async def until(self, condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
        """Wait for a condition."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"waited {seconds:g} s for {what}; stored: {self.payloads[-20:]}") from None

    async def until_count(self, count: int, seconds: float = 30) -> None:
        """Wait until `count` events are stored."""
        await self.until(lambda: len(self.payloads) >= count, f"{count} events", seconds)


class RecordingListener:
    """Records the warnings and failures of a subscription."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.failures: list[str] = []

    def warn(self, text: str) -> None:
        """Record a warning."""
        self.warnings.append(text)

    def fail(self, error: Exception, has_read: bool) -> None:
        """Record a failure."""
        self.failures.append(str(error))
        self.has_read = has_read
