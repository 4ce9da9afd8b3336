"""The rival: a thread for each watcher, that asks as airflow-supervisor's check does.

That check (``check_programs`` of supervisor-pydantic, called by airflow-supervisor) asks twice for programs that run,
whether they are done and whether they run; each time through a new ``xmlrpc.client.ServerProxy``, and so a new
connection, and each time it makes a pydantic model of every process. It is spared what else it costs there: the worker
process that is started for each check.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from xmlrpc.client import ServerProxy

import psutil
from pydantic import BaseModel

from bench.common.processes import serve

_RUNNING = 20
_DONE = (0, 100)


class _Process(BaseModel):
    name: str
    group: str
    state: int
    description: str
    start: datetime
    stop: datetime
    now: datetime
    exitstatus: int
    logfile: str
    stdout_logfile: str
    stderr_logfile: str
    pid: int


class Watchers:
    """What the bench asks of the process."""

    def __init__(self) -> None:
        self._problems: list[BaseException] = []
        self._looks = 0

    async def watch(self, urls: list[str], interval: float) -> None:
        """Start a thread for each of the URLs."""
        for url in urls:
            threading.Thread(target=self._watch, args=(url, interval), daemon=True).start()

    async def memory(self) -> int:
        """Return the bytes of memory that are this process's alone."""
        gc.collect()
        return int(psutil.Process().memory_full_info().uss)

    async def measure(self, seconds: float) -> tuple[float, int]:
        """Return CPU seconds in each second, and how many looks there were.

        :raises RuntimeError: a watcher has ended.
        """
        cpu, started, looks = time.process_time(), time.monotonic(), self._looks
        await asyncio.sleep(seconds)
        share = (time.process_time() - cpu) / (time.monotonic() - started)
        if self._problems:
            raise RuntimeError(repr(self._problems[0]))
        return share, self._looks - looks

    def _watch(self, url: str, interval: float) -> None:
        try:
            while True:
                due = time.monotonic() + interval
                if all(process.state in _DONE for process in _ask(url)):
                    raise RuntimeError("the programs have ended")
                if not all(process.state == _RUNNING for process in _ask(url)):
                    raise RuntimeError("not all programs run")
                self._looks += 1
                time.sleep(max(0.0, due - time.monotonic()))
        except BaseException as error:
            self._problems.append(error)


def _ask(url: str) -> list[_Process]:
    found = ServerProxy(url).supervisor.getAllProcessInfo()
    assert isinstance(found, list)
    return [_Process(**process) for process in found]


@asynccontextmanager
async def _watchers() -> AsyncIterator[Watchers]:
    yield Watchers()


if __name__ == "__main__":
    serve(_watchers)
