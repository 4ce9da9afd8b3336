"""A process that runs our triggers that watch supervisords, as a triggerer does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from bench.common.loops import BlockedLoop
from bench.common.processes import serve
from bench.common.triggerer import Triggerer
from deferrable_ops.high_availability.check_evaluator import CheckRules
from deferrable_ops.high_availability.facts import RunFacts
from deferrable_ops.inbox import use_inbox
from deferrable_ops.inbox.database.schema import waits
from deferrable_ops.triggers.supervisor.check_trigger import SupervisorCheckTrigger

_TICK = 0.01
_BEGUN_SECONDS = 120.0


class WatchingTriggerer(Triggerer):
    """What the bench asks of the process."""

    async def watch(self, configurations: list[str]) -> None:
        """Run more triggers, and return when all have looked.

        :param configurations: the sealed one of each.
        """
        now = datetime.now(UTC).isoformat()
        kwargs: dict[str, Any] = {
            "rules": CheckRules().as_json(),
            "run_facts": RunFacts("bench", "run", "manual", {"start_date": now}).as_json(),
            "timeout": 86_400.0,
        }
        each = [{**kwargs, "configuration": configuration} for configuration in configurations]
        await self.start(SupervisorCheckTrigger.classpath, each)
        async with use_inbox(retry_timeout=_BEGUN_SECONDS) as inbox, asyncio.timeout(_BEGUN_SECONDS):
            while len(await inbox.waits.find(waits.c.progress.is_not(None))) < self.count:
                await asyncio.sleep(0.5)

    async def measure(self, seconds: float) -> tuple[float, float, float, int]:
        """Return CPU seconds in each second; how late the loop is, 99th percentile, and its longest block, in seconds;
        and how often Python collected all of its garbage.
        """
        loop = asyncio.get_running_loop()
        assert isinstance(loop, BlockedLoop)
        loop.watch.restart()
        cpu, started = time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        share = (time.process_time() - cpu) / (time.monotonic() - started)
        longest, collections = loop.watch.longest, loop.watch.collections
        late = await self._lateness(seconds)
        _ = self.count  # which raises where one has ended
        return share, late, longest, collections

    async def _lateness(self, seconds: float) -> float:
        late, until = list[float](), time.perf_counter() + seconds
        while (due := time.perf_counter() + _TICK) < until:
            await asyncio.sleep(_TICK)
            late.append(time.perf_counter() - due)
        return sorted(late)[int(0.99 * len(late))]


@asynccontextmanager
async def _triggerer() -> AsyncIterator[WatchingTriggerer]:
    yield WatchingTriggerer()


if __name__ == "__main__":
    serve(_triggerer, BlockedLoop)
