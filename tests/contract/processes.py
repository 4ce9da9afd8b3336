"""Functions that the contract tests run in other processes, as Airflow's components would."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from contract.support import RETRY_TIMEOUT, callback, new_attempt, new_event, new_wait

from deferrable_ops.inbox import Inbox, WaitState
from deferrable_ops.inbox.waits.callbacks import Verb

# A fork server with the library imported and no threads: starting a process takes milliseconds and is safe.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["deferrable_ops.inbox.inbox", "aiosqlite", "asyncpg", "alembic.command"])


def start(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = _context.Process(target=_run, args=(dict(os.environ), work, arguments))
    process.start()
    return process


def _run(environment: dict[str, str], work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    # The fork server has the environment of its own start.
    os.environ.update(environment)
    work(*arguments)


async def ended(process: BaseProcess) -> bool:
    return not process.is_alive()


def open_and_close(url: str) -> None:
    async def run() -> None:
        await (await Inbox.open(url, retry_timeout=60)).close()

    asyncio.run(run())


def open_and_forget(url: str) -> None:
    async def run() -> None:
        inbox = await Inbox.open(url, retry_timeout=60)
        with inbox.watcher.subscribe("a wait"):
            await inbox.waits.register(new_wait())

    asyncio.run(run())


def triggerer(url: str, tasks: list[str], registered: Path, seen: Path) -> None:
    """Register a wait for each task, and write its outcome to a file."""
    known = set()

    async def follow(inbox: Inbox, task: str, file: Any) -> None:
        attempt = new_attempt(task, ti_id=task)
        with inbox.watcher.subscribe(attempt.wait_id) as changes:
            wait = await inbox.waits.register(new_wait(attempt))
            known.add(wait.id)
            while wait.state is WaitState.WAITING:
                wait = await changes.next()
        file.write(json.dumps([wait.id, getattr(wait.outcome, "value", None)]) + "\n")
        file.flush()

    async def run() -> None:
        inbox = await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)
        with seen.open("a") as file:
            following = [asyncio.create_task(follow(inbox, task, file)) for task in tasks]
            while len(known) < len(tasks):
                await asyncio.sleep(0.02)
            registered.touch()
            await asyncio.gather(*following)
        await inbox.close()

    asyncio.run(run())


def endpoint(url: str, name: str, wait_ids: list[str], acknowledged: Path) -> None:
    """Send a callback to every wait, and write the accepted ones to a file, each after its receipt."""

    async def post(inbox: Inbox, wait_id: str, file: Any) -> None:
        payload = [name, wait_id]
        receipt = await inbox.callbacks.record(callback(wait_id, payload, Verb.SUCCESS))
        assert receipt.status in (200, 409), receipt
        if receipt.status == 200:
            file.write(json.dumps([wait_id, payload]) + "\n")
            file.flush()

    async def run() -> None:
        inbox = await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)
        with acknowledged.open("a") as file:
            for start in range(0, len(wait_ids), 20):
                await asyncio.gather(
                    *(post(inbox, wait_id, file) for wait_id in wait_ids[start : start + 20])
                )
        await inbox.close()

    asyncio.run(run())


def appender(url: str, number: int, count: int, acknowledged: Path) -> None:
    """Append events with keys of this process and with shared keys, and write each to a file after its commit."""

    async def append(inbox: Inbox, key: str, file: Any) -> None:
        appended = await inbox.events.append(new_event("channel:many", key))
        file.write(json.dumps([key, appended.number]) + "\n")
        file.flush()

    async def run() -> None:
        inbox = await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)
        keys = [key for i in range(count) for key in (f"{number}/{i}", f"shared/{i}")]
        with acknowledged.open("a") as file:
            for start in range(0, len(keys), 20):
                await asyncio.gather(*(append(inbox, key, file) for key in keys[start : start + 20]))
        await inbox.close()

    asyncio.run(run())
