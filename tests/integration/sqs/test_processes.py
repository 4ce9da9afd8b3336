"""Processes that poll one queue and are killed at any moment."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.triggers.support import eventually

from deferrable_ops.events import SqsEvent
from deferrable_ops.inbox import Inbox
from real_sqs import RealSqs, name_of

PROCESS = Path(__file__).with_name("sqs_process.py")


class Processes:
    """Polling processes, each with its own inbox on one database."""

    def __init__(self, server: RealSqs, inbox_url: str) -> None:
        self._server = server
        self._inbox_url = inbox_url
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, queue: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **self._server.connection()}
        process = subprocess.Popen(
            [sys.executable, str(PROCESS), self._inbox_url, queue], env=environment, stdout=subprocess.DEVNULL
        )
        self._running.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait(20)
        self._running.remove(process)

    def kill_all(self) -> None:
        for process in list(self._running):
            self.kill(process)


@pytest.fixture
def inbox_url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path / 'inbox.db'}"


@pytest.fixture
def processes(server: RealSqs, inbox_url: str) -> Iterator[Processes]:
    processes = Processes(server, inbox_url)
    yield processes
    processes.kill_all()


@pytest.fixture
async def inbox(inbox_url: str) -> AsyncIterator[Inbox]:
    inbox = await Inbox.open(inbox_url, retry_timeout=60)
    yield inbox
    await inbox.close()


async def payloads_in(inbox: Inbox, queue: str) -> list[Any]:
    source = SqsEvent(queue, dedicated=True).source
    newest = await inbox.events.newest()
    return [event.payload for event in await inbox.events.read({source}, after=0, upto=newest, limit=10_000)]


async def wait_for_payloads(inbox: Inbox, queue: str, count: int, seconds: float = 90) -> list[Any]:
    """Return the payloads in the inbox once there are `count` of them."""
    try:
        async with asyncio.timeout(seconds):
            while len(found := await payloads_in(inbox, queue)) < count:
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{len(found)} of {count} after {seconds:g} s") from None
    return found


async def wait_until_empty(server: RealSqs, queue: str) -> None:
    await eventually(lambda: server.count(queue) == 0, "the queue to be empty", 60)


async def test_kill_between_commit_and_delete_neither_loses_nor_repeats_a_message(
    server: RealSqs, processes: Processes, inbox: Inbox, queue: str
) -> None:
    fault = server.proxy.fail("DeleteMessageBatch")
    server.send_all(queue, list(range(10)))
    process = processes.start(queue)
    await wait_for_payloads(inbox, queue, 10)
    await eventually(lambda: server.proxy.count("DeleteMessageBatch", name_of(queue)), "a delete")
    processes.kill(process)
    assert server.count(queue) == 10
    server.proxy.heal(fault)
    processes.start(queue)
    await wait_until_empty(server, queue)
    assert sorted(await payloads_in(inbox, queue)) == list(range(10))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["standard", "fifo"])
async def test_repeated_kills_keep_each_message_once_and_in_order(
    server: RealSqs, processes: Processes, inbox: Inbox, queue: str, ordered: str, kind: str
) -> None:
    url = ordered if kind == "fifo" else queue
    for kills in range(4):
        for group in "ab":
            rows = [{"group": group, "n": n} for n in range(kills * 30, kills * 30 + 30)]
            server.send_all(url, rows, group=group if kind == "fifo" else None)
        process = processes.start(url)
        await wait_for_payloads(inbox, url, kills * 60 + 7)
        processes.kill(process)
    processes.start(url)
    found = await wait_for_payloads(inbox, url, 240)
    await wait_until_empty(server, url)
    assert len(await payloads_in(inbox, url)) == 240
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for payload in found:
        groups[payload["group"]].append(payload["n"])
    if kind == "standard":
        groups = defaultdict(list, {group: sorted(numbers) for group, numbers in groups.items()})
    assert groups == {group: list(range(120)) for group in "ab"}


@pytest.mark.parametrize("kind", ["standard", "fifo"])
async def test_two_processes_share_a_queue(
    server: RealSqs, processes: Processes, inbox: Inbox, queue: str, ordered: str, kind: str
) -> None:
    url, groups = (ordered, "abc") if kind == "fifo" else (queue, "a")
    for _ in range(2):
        processes.start(url)
    polls = server.proxy.calls_of
    await eventually(lambda: server.proxy.under_way("ReceiveMessage", name_of(url)) == 2, "both polls")
    for begin in range(0, 200, 20):
        for group in groups:
            rows = [{"group": group, "n": n} for n in range(begin // 2, begin // 2 + 10)]
            await asyncio.to_thread(server.send_all, url, rows, group=group if kind == "fifo" else None)
    count = 100 * len(groups)
    found = await wait_for_payloads(inbox, url, count)
    await wait_until_empty(server, url)
    assert len(await payloads_in(inbox, url)) == count
    assert polls("DeleteMessageBatch", name_of(url))
    for group in groups:
        numbers = [payload["n"] for payload in found if payload["group"] == group]
        assert (numbers if kind == "fifo" else sorted(numbers)) == list(range(100))
