"""Test double for the store and the listener of an SQS upstream."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from deferrable_ops.events import SqsEvent
from deferrable_ops.events.event import Event
from deferrable_ops.upstreams.sqs.queues import SqsPollers


class Stored:
    """Stores each message once in memory, in place of the inbox.

    :ivar problem: the error that storing raises.
    :ivar tries: how often storing was attempted.
    :ivar again: the number of duplicates.
    """

    def __init__(self) -> None:
        self.events: dict[tuple[str, str], Event] = {}
        self.problem: Exception | None = None
        self.tries = self.again = 0
        self.threads: set[int] = set()
        self.warnings: list[str] = []
        self.failures: list[str] = []

    async def __call__(self, events: Sequence[Event]) -> None:
        """Store messages."""
        self.tries += 1
        self.threads.add(threading.get_ident())
        await asyncio.sleep(0)
        if self.problem is not None:
            raise self.problem
        for event in events:
            key = event.source, event.dedupe_key
            self.again += key in self.events
            self.events.setdefault(key, event)

    @contextmanager
    def subscribed(self, sqs: SqsPollers, url: str) -> Iterator[SqsEvent]:
        """Poll a queue like a wait."""
        event = SqsEvent(url, dedicated=True)
        with sqs.subscribe(event, store=self, listener=self):
            yield event

    def warn(self, text: str) -> None:
        """Record a warning."""
        self.warnings.append(text)

    def fail(self, error: Exception, has_read: bool) -> None:
        """Record a failure."""
        self.failures.append(str(error))
        self.has_read = has_read

    @property
    def payloads(self) -> list[Any]:
        """The payloads of all messages, in the order in which they were stored."""
        return [event.payload for event in self.events.values()]

    async def until(self, condition: Callable[[], object], what: str, seconds: float = 30) -> None:
        """Wait for a condition."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            found = f"stored: {self.payloads[-20:]}; warnings and failures: {self.warnings} {self.failures}"
            raise AssertionError(f"waited {seconds:g} s for {what}; {found}") from None

    async def until_count(self, count: int, seconds: float = 30) -> None:
        """Wait until `count` messages are stored."""
        await self.until(lambda: len(self.events) >= count, f"{count} messages", seconds)
