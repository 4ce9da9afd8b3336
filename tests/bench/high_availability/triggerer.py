"""A process that runs our checks as a triggerer does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import psutil

from bench.common.loops import BlockedLoop
from bench.common.processes import serve
from bench.common.triggerer import Triggerer
from deferrable_ops.high_availability.check_evaluator import CheckRules
from deferrable_ops.high_availability.facts import RunFacts
from deferrable_ops.high_availability.poll_schedule import PollSchedule
from deferrable_ops.triggers.high_availability.triggers import HighAvailabilityTrigger


class CheckingTriggerer(Triggerer):
    """What the bench asks of the process."""

    async def check(self, more: int, interval: float) -> None:
        """Run more checks."""
        now = datetime.now(UTC).isoformat()
        kwargs: dict[str, Any] = {
            "check": "bench.high_availability.checks.is_well",
            "rules": CheckRules(pace=PollSchedule(interval=interval)).as_json(),
            "run_facts": RunFacts("bench", "run", "manual", {"start_date": now}).as_json(),
            "timeout": 86_400.0,
        }
        await self.start(HighAvailabilityTrigger.classpath, [kwargs] * more)

    async def measure(self, seconds: float) -> tuple[float, float, int]:
        """Return CPU seconds in each second, the longest block of the loop, and how many processes this one has."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, BlockedLoop)
        loop.watch.restart()
        cpu, started = time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        share = (time.process_time() - cpu) / (time.monotonic() - started)
        assert self.count
        return share, loop.watch.longest, len(psutil.Process().children(recursive=True))


@asynccontextmanager
async def _triggerer() -> AsyncIterator[CheckingTriggerer]:
    yield CheckingTriggerer()


if __name__ == "__main__":
    serve(_triggerer, BlockedLoop)
