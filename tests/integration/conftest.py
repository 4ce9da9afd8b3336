"""A fake Dataflow, moto's SQS, and the library's clients of them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from deferrable_ops.testing.dataflow import FakeDataflow, fake_dataflow
from deferrable_ops.upstreams.dataflow import Dataflow, Place, use_dataflow
from deferrable_ops.upstreams.sqs import Sqs, open_sqs
from real_sqs import RealSqs, Stored

_numbers = itertools.count(1)


@pytest.fixture
async def fake() -> AsyncIterator[FakeDataflow]:
    async with fake_dataflow() as fake:
        yield fake


@pytest.fixture
async def dataflow(fake: FakeDataflow, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Dataflow]:
    """A client that tries again at once."""
    monkeypatch.setattr("deferrable_ops.upstreams.dataflow._PAUSE_FIRST", 0.01)
    async with use_dataflow(Place("p", "r")) as dataflow:
        yield dataflow


@pytest.fixture
def server(sqs_server: RealSqs) -> Iterator[RealSqs]:
    """An SQS without faults, until a test asks for some."""
    yield sqs_server
    sqs_server.proxy.heal()


@pytest.fixture
async def sqs(server: RealSqs) -> AsyncIterator[Sqs]:
    sqs = await open_sqs(server.settings())
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
