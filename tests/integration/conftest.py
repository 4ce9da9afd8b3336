"""A fake Dataflow, moto's SQS, the library's clients of them, and what runs triggers on an inbox in a file."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from integration.inboxes import open_inbox
from integration.supervisor import support
from unit.triggers.support import Runs

from deferrable_ops import settings
from deferrable_ops.testing.dataflow import FakeDataflow, fake_dataflow
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.upstreams.dataflow.api import open_api
from deferrable_ops.upstreams.dataflow.client import Dataflow, DataflowTarget
from deferrable_ops.upstreams.sqs.queues import PollerTimings, SqsPollers, open_pollers
from real_sqs import RealSqs, Stored

_numbers = itertools.count(1)


@pytest.fixture
async def fake() -> AsyncIterator[FakeDataflow]:
    async with fake_dataflow() as fake:
        yield fake


@pytest.fixture
async def dataflow(fake: FakeDataflow) -> AsyncIterator[Dataflow]:
    """A client that retries almost at once."""
    api = await open_api(DataflowTarget("p", "r"), settings.dataflow_emulator_host())
    dataflow = Dataflow(api, first_pause=0.01)
    yield dataflow
    await dataflow.close()


@pytest.fixture
def server(sqs_server: RealSqs) -> Iterator[RealSqs]:
    """An SQS without faults, until a test asks for some."""
    yield sqs_server
    sqs_server.proxy.heal()


@pytest.fixture
def poller_timings() -> PollerTimings:
    """The timings of the fixture `sqs`; a file or a test gives others."""
    return PollerTimings()


@pytest.fixture
async def sqs(server: RealSqs, poller_timings: PollerTimings) -> AsyncIterator[SqsPollers]:
    sqs = await open_pollers(server.settings(), timings=poller_timings)
    yield sqs
    await sqs.close()


@pytest.fixture
def stored() -> Stored:
    """Whoever waits for messages, and stores them."""
    return Stored()


@pytest.fixture
def queue(server: RealSqs) -> str:
    """The URL of a queue."""
    return server.create_queue(f"orders-{next(_numbers)}", visibility=3)


@pytest.fixture
def ordered(server: RealSqs) -> str:
    """The URL of a FIFO queue."""
    return server.create_queue(f"orders-{next(_numbers)}.fifo", visibility=3)


@pytest.fixture
async def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Runs]:
    """Runs triggers on an inbox in a file, and lets tests read the task's log."""
    monkeypatch.setattr(TaskTrigger, "log", logging.getLogger("task"))
    inbox = await open_inbox(tmp_path)
    runs = Runs(inbox)
    yield runs
    await runs.stop()
    await inbox.close()


@pytest.fixture
def place(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> Iterator[support.Place]:
    """A place for a supervisord, which is looked at often; its path is short: a socket's has room for 95 bytes."""
    support.set_timings(monkeypatch, poll_interval=0.05)
    with TemporaryDirectory(prefix="steps-") as folder:
        place = support.Place(Path(folder), runs)
        yield place
        place.clean()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB, on which only its owner may write."""
    if os.geteuid():
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "none", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)
