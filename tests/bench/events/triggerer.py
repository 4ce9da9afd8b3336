"""A process that runs triggers which wait for events: ours, bare ones, or the rivals'."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

from bench.common.processes import serve
from bench.common.triggerer import Triggerer
from bench.events.fired import FIRED

_SYNC_SECONDS: Final = 1.0  # as Airflow's main loop
_REGISTERED_SECONDS: Final = 120.0
_TICK_SECONDS: Final = 0.005
_LOOK_SECONDS: Final = 0.2


class EventsTriggerer(Triggerer):
    """What the bench asks of the process."""

    @property
    def count(self) -> int:
        """How many triggers were started."""
        return len(self._runner.triggers)

    async def run(self, classpath: str, kwargs_of_each: list[dict[str, Any]]) -> None:
        """Run more triggers."""
        await self.start(classpath, kwargs_of_each)

    async def grow(self, classpath: str, kwargs_of_each: list[dict[str, Any]]) -> int:
        """Run more triggers, and return the bytes of memory that are this process's alone once all of them wait."""
        register = any("events" in kwargs for kwargs in kwargs_of_each)
        await self.start(classpath, _let_go(kwargs_of_each))
        if register:
            await self._until_registered()
        await self.quiet()
        assert not self._failed(), self._failed()
        return await self.memory()

    async def fired(self) -> dict[str, float]:
        """Return when the trigger of each wait yielded its event, by the machine's monotonic clock."""
        failed = self._failed()
        if failed:
            raise RuntimeError(f"{len(failed)} triggers failed, one of them with {failed[0]}")
        return FIRED

    async def pid(self) -> int:
        """Return the id of this process."""
        return os.getpid()

    async def lags(self, seconds: float) -> tuple[list[float], float]:
        """Return how late the event loop was each time, in seconds, and the CPU seconds that this process used."""
        lags, cpu, ends_at = [], time.process_time(), time.monotonic() + seconds
        while (before := time.monotonic()) < ends_at:
            await asyncio.sleep(_TICK_SECONDS)
            lags.append(time.monotonic() - before - _TICK_SECONDS)
        return lags, time.process_time() - cpu

    async def sync(self) -> None:
        """Do as Airflow's main loop does with what was yielded: a shared stream goes on once it is stored."""
        while True:
            await asyncio.sleep(_SYNC_SECONDS)
            entries = [self._runner.events.popleft() for _ in range(len(self._runner.events))]
            persisted = [entry.persist_seq for entry in entries if entry.persist_seq is not None]
            self._runner._shared_streams.confirm_persisted(persisted)

    async def _until_registered(self) -> None:
        """Return once all waits are in the inbox: what is sent before a wait has begun is not for it."""
        from deferrable_ops.inbox import NO_RETRY_TIMEOUT, use_inbox

        async with use_inbox(retry_timeout=NO_RETRY_TIMEOUT) as inbox, asyncio.timeout(_REGISTERED_SECONDS):
            while len(list(inbox.watcher.watched)) + len(FIRED) < self.count:
                assert not self._failed(), self._failed()
                await asyncio.sleep(_LOOK_SECONDS)

    def _failed(self) -> list[str]:
        tasks = [details["task"] for details in self._runner.triggers.values()]
        return [repr(task.exception()) for task in tasks if task.done() and task.exception() is not None]


def _let_go(kwargs_of_each: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield all of them, and empty the list: no such dicts are in a triggerer, and a bare trigger's weigh nothing."""
    kwargs_of_each.reverse()
    while kwargs_of_each:
        yield kwargs_of_each.pop()


@asynccontextmanager
async def _triggerer() -> AsyncIterator[EventsTriggerer]:
    triggerer = EventsTriggerer()
    syncing = asyncio.create_task(triggerer.sync())
    yield triggerer
    syncing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await syncing


if __name__ == "__main__":
    serve(_triggerer)
