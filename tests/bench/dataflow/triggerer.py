"""A process that runs triggers which wait for Dataflow jobs: ours, or the rival's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.common.loops import BlockedLoop
from bench.common.processes import serve
from bench.common.triggerer import Triggerer
from bench.dataflow import rival
from deferrable_ops.triggers.dataflow.triggers import DataflowLaunchTrigger

PROJECT_ID, REGION = "bench", "europe-west1"
_BODY = {"launchParameter": {"containerSpecGcsPath": "gs://bench/template.json", "parameters": {"rows": "1"}}}


class DataflowTriggerer(Triggerer):
    """What the bench asks of the process."""

    async def launch(self, more: int, interval: float) -> None:
        """Run more of our triggers; each launches a job and waits for it."""
        kwargs = {
            "project_id": PROJECT_ID,
            "region": REGION,
            "body": _BODY,
            "timeout": 86_400.0,
            "poll_interval": interval,
        }
        await self.start(DataflowLaunchTrigger.classpath, [kwargs] * more)

    async def wait_for(self, job_ids: list[str], interval: float) -> None:
        """Run more of the rival's triggers, one for each job."""
        place = {"project_id": PROJECT_ID, "location": REGION, "poll_sleep": interval}
        await self.start(rival.CLASSPATH, [{**place, "job_id": job_id} for job_id in job_ids])

    async def wait(self, seconds: float, expected: int) -> tuple[float, float, float, int]:
        """Wait for so long, and return what it cost: CPU seconds in each second, the longest block of the event loop,
        the longest without Python's garbage collection, and the number of full collections.

        :param expected: how many triggers have to be waiting.
        """
        loop = asyncio.get_running_loop()
        assert isinstance(loop, BlockedLoop)
        loop.watch.restart()
        cpu, started = time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        lasted = time.monotonic() - started
        assert self.count == expected
        cpu_share = (time.process_time() - cpu) / lasted
        return cpu_share, loop.watch.longest, loop.watch.longest_working, loop.watch.collections


@asynccontextmanager
async def _triggerer() -> AsyncIterator[DataflowTriggerer]:
    yield DataflowTriggerer()


if __name__ == "__main__":
    serve(_triggerer, BlockedLoop)
