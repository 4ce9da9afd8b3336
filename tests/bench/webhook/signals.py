"""The floor of latency: what a database itself needs to tell one process of another one's commit."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from bisect import bisect_left
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import asyncpg

from bench.common.processes import Child, serve

_POLL_SECONDS = 0.05
_LATE_SECONDS = 0.5


async def send_signals(url: str, listener: Child, count: int, per_second: float) -> list[float]:
    """Return after how many seconds each of so many signals arrived."""
    if url.startswith("sqlite"):
        return await _commit(url, listener, count, per_second)
    return await _notify(url, listener, count, per_second)


async def _commit(url: str, listener: Child, count: int, per_second: float) -> list[float]:
    sent = []
    with closing(sqlite3.connect(_path(url), isolation_level=None)) as connection:
        for number in range(count):
            connection.execute("INSERT INTO signals VALUES (?)", (number,))
            sent.append(time.monotonic())
            await asyncio.sleep(1 / per_second)
    await asyncio.sleep(_LATE_SECONDS)
    seen = listener.ask("seen")
    return [seen[bisect_left(seen, at)] - at for at in sent]


async def _notify(url: str, listener: Child, count: int, per_second: float) -> list[float]:
    sent = []
    connection = await asyncpg.connect(_dsn(url))
    for number in range(count):
        sent.append(time.monotonic())
        await connection.execute("SELECT pg_notify('signals', $1)", str(number))
        await asyncio.sleep(1 / per_second)
    await connection.close()
    await asyncio.sleep(_LATE_SECONDS)
    seen = listener.ask("seen")[-count:]
    return [arrived - at for at, arrived in zip(sent, seen, strict=True)]


class Listener:
    """What the bench asks of the process that listens."""

    def __init__(self) -> None:
        self.arrived: list[float] = []

    async def seen(self) -> list[float]:
        """Return when signals arrived, by the machine's monotonic clock."""
        return self.arrived

    async def poll(self, path: str) -> None:
        """Look every 50 ms, as the inbox does."""
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            last = None
            while True:
                version = connection.execute("PRAGMA data_version").fetchone()[0]
                if version != last:
                    last = version
                    self.arrived.append(time.monotonic())
                await asyncio.sleep(_POLL_SECONDS)

    def note(self, *_: object) -> None:
        """Take a notification."""
        self.arrived.append(time.monotonic())


@asynccontextmanager
async def _listener() -> AsyncIterator[Listener]:
    url, listener = os.environ["BENCH_SIGNALS_URL"], Listener()
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(_path(url))) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE signals (number INTEGER)")
        polling = asyncio.create_task(listener.poll(_path(url)))
        yield listener
        polling.cancel()
    else:
        connection = await asyncpg.connect(_dsn(url))
        await connection.add_listener("signals", listener.note)
        yield listener
        await connection.close()


def _path(url: str) -> str:
    return url.removeprefix("sqlite+aiosqlite:///")


def _dsn(url: str) -> str:
    return url.replace("+asyncpg", "")


if __name__ == "__main__":
    serve(_listener)
