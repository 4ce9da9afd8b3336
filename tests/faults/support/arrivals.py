"""What comes into an Airflow's inbox, as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.events.events import StoredEvent
from real_airflow import RealAirflow, wait_until
from real_airflow.sources import Source


class Arrivals:
    """The events of some sources, by what a test calls the source."""

    def __init__(self, inbox: Inbox, runner: asyncio.Runner, sources: Mapping[str, Source]) -> None:
        self._inbox = inbox
        self._runner = runner
        self._called = {source.inbox_source: name for name, source in sources.items()}
        self._seen = 0
        self._events: dict[str, list[StoredEvent]] = {name: [] for name in sources}

    def of(self, name: str) -> list[StoredEvent]:
        """Return what has come from a source by now."""
        self._runner.run(self._look())
        return self._events[name]

    def wait_for(self, name: str, count: int, timeout: float = 90) -> None:
        """Wait until so many have come from a source."""
        wait_until(lambda: len(self.of(name)) >= count, f"{count} events of {name}", timeout, every=0.02)

    def wait_for_more(self, *names: str) -> None:
        """Wait until each of these sources has brought something from now on."""
        for name, count in {name: len(self.of(name)) for name in names}.items():
            self.wait_for(name, count + 1)

    async def _look(self) -> None:
        newest = await self._inbox.events.newest()
        for event in await self._inbox.events.read(
            self._called, after=self._seen, upto=newest, limit=100_000
        ):
            self._events[self._called[event.source]].append(event)
        self._seen = newest


@contextmanager
def arrivals_at(airflow: RealAirflow, sources: Mapping[str, Source]) -> Iterator[Arrivals]:
    """Look into an inbox for as long as the block lasts."""
    with asyncio.Runner() as runner:
        inbox = runner.run(Inbox.open(airflow.inbox_url, retry_timeout=60))
        try:
            yield Arrivals(inbox, runner, sources)
        finally:
            runner.run(inbox.close())
