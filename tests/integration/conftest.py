"""A fake Dataflow, and the library's client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from deferrable_ops.testing.dataflow import FakeDataflow, fake_dataflow
from deferrable_ops.upstreams.dataflow import Dataflow, Place, use_dataflow


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
