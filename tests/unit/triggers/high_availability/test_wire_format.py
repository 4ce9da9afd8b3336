"""The triggers of high availability, as other people's databases keep them."""

from __future__ import annotations

import pkgutil
import time
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.triggers.base import BaseTrigger

from deferrable_ops.triggers.high_availability.triggers import (
    HighAvailabilityGateTrigger,
    HighAvailabilityPauseTrigger,
    HighAvailabilityTrigger,
)

TRIGGERS = [HighAvailabilityTrigger, HighAvailabilityGateTrigger, HighAvailabilityPauseTrigger]


@pytest.mark.parametrize("trigger_class", TRIGGERS)
def test_classpath_imports_back_to_the_class(trigger_class: type[BaseTrigger]) -> None:
    classpath, kwargs = trigger_class().serialize()
    assert pkgutil.resolve_name(classpath) is trigger_class
    assert trigger_class(**kwargs).serialize() == (classpath, kwargs)


@pytest.mark.parametrize("trigger_class", TRIGGERS)
def test_kwargs_of_an_older_or_newer_version_still_make_a_trigger(trigger_class: type[BaseTrigger]) -> None:
    assert isinstance(trigger_class(argument_that_was_dropped={"a": 1}), BaseTrigger)


async def test_pause_is_over_when_the_next_check_is_due_and_not_before_a_worker_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deferrable_ops.triggers.high_availability import triggers as high_availability_triggers

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
