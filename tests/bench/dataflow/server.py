"""The fake Dataflow in a process of its own: its jobs run, and go on running."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.common.processes import serve
from deferrable_ops.testing.dataflow import FakeDataflow, Step, fake_dataflow

_SAMPLE_SECONDS = 0.01


class Server:
    """What the bench asks of the process."""

    def __init__(self, fake: FakeDataflow) -> None:
        self._fake = fake

    async def host(self) -> str:
        """Return what the setting ``dataflow_emulator_host`` takes."""
        return self._fake.host

    async def job_ids(self) -> list[str]:
        """Return the ids of the jobs that were launched."""
        return [job.id for job in self._fake.jobs()]

    async def calls(self) -> int:
        """Return how many calls came."""
        return self._fake.trouble.calls.total()

    async def calls_of_looks(self, count: int, quiet: float) -> float:
        """Return how many calls make up a look at all jobs: the mean of the next looks.

        :param quiet: seconds without a call that part two looks.
        """
        await self._until_quiet(quiet)
        before = await self.calls()
        for _ in range(count):
            seen = await self.calls()
            while seen == await self.calls():
                await asyncio.sleep(_SAMPLE_SECONDS)
            await self._until_quiet(quiet)
        return (await self.calls() - before) / count

    async def _until_quiet(self, quiet: float) -> None:
        seen, since = await self.calls(), time.monotonic()
        while time.monotonic() - since < quiet:
            await asyncio.sleep(_SAMPLE_SECONDS)
            if seen != await self.calls():
                seen, since = await self.calls(), time.monotonic()

    async def limit_pages(self, jobs: int) -> None:
        """Let no page have more jobs."""
        self._fake.page_limit = jobs


@asynccontextmanager
async def _server() -> AsyncIterator[Server]:
    async with fake_dataflow() as fake:
        fake.script("", Step("RUNNING"))
        yield Server(fake)


if __name__ == "__main__":
    serve(_server)
