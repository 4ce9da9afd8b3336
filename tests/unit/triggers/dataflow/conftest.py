"""Fixtures of the tests of the Dataflow triggers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from deferrable_ops.testing.dataflow import FakeDataflow, fake_dataflow
from deferrable_ops.triggers.dataflow import launch


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a launch try again after a twentieth of a second."""
    monkeypatch.setattr(launch, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(launch, "_LABELS_EVERY", 0.05)
    monkeypatch.setattr(launch, "_SEARCH_EVERY", 0.1)


@pytest.fixture
async def fake() -> AsyncIterator[FakeDataflow]:
    """Serve a Dataflow on the loopback interface."""
    async with fake_dataflow() as fake:
        yield fake
