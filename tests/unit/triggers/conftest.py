"""Fixtures of the tests of all triggers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from airflow.sdk.execution_time import task_runner
from unit.triggers.support import AirflowComms, Runs

from deferrable_ops.inbox.waits.launches import Launches
from deferrable_ops.supervisor_calls import Rank
from deferrable_ops.testing import memory_inbox
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.lifecycle import delivery


@pytest.fixture
def airflow_comms(monkeypatch: pytest.MonkeyPatch) -> AirflowComms:
    """Replace the connection to Airflow's supervisor process, which takes XComs."""
    comms = AirflowComms()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)
    return comms


@pytest.fixture
async def runs(
    airflow_comms: AirflowComms, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Runs]:
    """Run triggers on an inbox in memory, and let tests read the task's log. Launch claims are acquired quickly."""
    monkeypatch.setattr(TaskTrigger, "log", logging.getLogger("task"))
    caplog.set_level(logging.INFO, "task")

    async def push_xcom(trigger: TaskTrigger, key: str, value: Any, rank: Rank = Rank.PROGRESS) -> None:
        await delivery.push_xcom(trigger.current.attempt, key, value, rank)

    # The original does nothing for a trigger without a task instance.
    monkeypatch.setattr(TaskTrigger, "push_xcom", push_xcom)
    async with memory_inbox() as inbox:
        inbox.launches = Launches(inbox.database, inbox.owner, acquire_interval=0.05)
        runs = Runs(inbox)
        yield runs
        await runs.stop()
