"""The pause between two checks that run on a worker."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from deferrable_ops.triggers.high_availability import triggers as high_availability_triggers
from deferrable_ops.triggers.high_availability.triggers import HighAvailabilityPauseTrigger


async def test_pause_ends_when_the_next_check_is_due_and_not_before_the_worker_has_exited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    in_triggerer: Any = SimpleNamespace(task_id="watch")

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(high_availability_triggers.asyncio, "sleep", sleep)
    for until in (time.time() + 60, 0.0):
        pause = HighAvailabilityPauseTrigger(until)
        pause.task_instance = in_triggerer
        [event] = [event async for event in pause.run()]
        assert event.payload == {"check": "due"}
    assert slept == [pytest.approx(60, abs=1), 8.0]
