"""Tasks that were answered and have not ended are found, and logged by one process."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from airflow.models.taskinstance import TaskInstance
from airflow.observability import stats
from unit.triggers.support import eventually

from deferrable_ops import Success
from deferrable_ops.inbox import Attempt, Inbox, NewWait, Wait
from deferrable_ops.testing import memory_inbox
from deferrable_ops.triggers.lifecycle.unended import METRIC, find_unended, report_unended


async def register(inbox: Inbox, task_id: str, *, answered: bool) -> Wait:
    attempt = Attempt(str(uuid4()), 1, "sales", "manual", task_id)
    wait = await inbox.waits.register(NewWait(attempt, "webhook", 3600.0))
    return await inbox.waits.settle(wait.id, Success(None)) if answered else wait


async def test_only_answered_tasks_that_are_under_way_are_unended() -> None:
    async with memory_inbox() as inbox:
        waiting = await register(inbox, "waiting", answered=False)
        answered = await register(inbox, "answered", answered=True)
        await register(inbox, "ended", answered=True)

        async def under_way() -> list[str]:
            return [waiting.id, answered.id, *(str(uuid4()) for _ in range(1_000))]

        assert await find_unended(inbox, under_way, 0.0) == [answered]
        assert await find_unended(inbox, under_way) == [], "it was answered a moment ago"


async def test_unended_tasks_are_logged_and_counted_in_a_metric(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauges: list[tuple[str, float]] = []
    monkeypatch.setattr(stats, "gauge", lambda name, value: gauges.append((name, value)))
    async with memory_inbox() as inbox:
        answered = await register(inbox, "train", answered=True)
        unended = [answered]

        async def settled_long_ago(*_: object) -> list[Wait]:
            return [unended.pop()] if unended else []

        inbox.waits.settled_before = settled_long_ago  # type: ignore[assignment]

        async def under_way() -> list[str]:
            return [answered.id]

        task = asyncio.create_task(report_unended(inbox, under_way, 0.01))
        await eventually(lambda: len(gauges) > 1, "a second report")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    # When the task has ended, the metric is 0 again.
    assert gauges[:2] == [(METRIC, 1), (METRIC, 0)]
    assert (
        "1 tasks have had an outcome for more than 60 s, but have not ended in Airflow. The oldest is sales.train of "
        "run manual" in caplog.text
    )


def test_attempt_of_a_task_instance_needs_only_its_id_and_try() -> None:
    """The metadata database is asked for these two columns."""
    ti_id = str(uuid4())
    assert Attempt(ti_id, 2, "", "", "").wait_id == Attempt(ti_id, 2, "sales", "manual", "train", 3).wait_id
    assert hasattr(TaskInstance, "id")
    assert hasattr(TaskInstance, "try_number")
