"""Fixtures of the tests of the Dataflow triggers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from deferrable_ops.testing.dataflow import FakeDataflow, fake_dataflow
from deferrable_ops.triggers.dataflow.follow import DataflowTrigger
from deferrable_ops.triggers.dataflow.launch import LaunchTimings
from deferrable_ops.triggers.dataflow.triggers import DataflowLaunchTrigger


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a launch try again after a twentieth of a second."""
    timings = LaunchTimings(
        first_pause=0.05,
        labels_every=0.05,
        search_every=0.1,
        gone_after=0.3,
        gone_every=0.05,
        errors_within=0.3,
    )
    monkeypatch.setattr(DataflowLaunchTrigger, "launch_timings", timings)
    monkeypatch.setattr(DataflowTrigger, "first_retry_pause", 0.05)
    monkeypatch.setattr(DataflowTrigger, "longest_retry_pause", 0.2)
    monkeypatch.setattr(DataflowTrigger, "credentials_refused_for", 0.2)


@pytest.fixture
def final_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a refusal be final after half a second, if it is repeated."""
    monkeypatch.setattr(DataflowTrigger, "read_refused_for", 0.5)


@pytest.fixture
async def fake() -> AsyncIterator[FakeDataflow]:
    """Serve a Dataflow on the loopback interface."""
    async with fake_dataflow() as fake:
        yield fake
