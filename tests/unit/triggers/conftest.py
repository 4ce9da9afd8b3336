"""What the tests of the triggers start with."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from airflow.sdk.execution_time import task_runner
from unit.triggers.events.kafka_support import FakeKafka
from unit.triggers.support import Comms, Runs

from deferrable_ops.inbox.waits import launches
from deferrable_ops.testing import memory_inbox
from deferrable_ops.testing.dataflow import FakeDataflow, fake_dataflow
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.dataflow import launch
from deferrable_ops.triggers.events import kafka_source, progress
from deferrable_ops.triggers.lifecycle import delivery


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Comms:
    """Airflow's supervisor, which takes XComs."""
    supervisor = Comms()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)

    async def push_xcom(trigger: TaskTrigger, key: str, value: Any) -> None:
        await delivery.push_xcom(trigger.current.attempt, key, value)

    monkeypatch.setattr(
        TaskTrigger, "push_xcom", push_xcom
    )  # which does nothing for a trigger without a task instance
    return supervisor


@pytest.fixture
async def runs(
    supervisor: Comms, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Runs]:
    """Runs triggers on an inbox of its own, does not pause for long, and lets tests read the task's log."""
    monkeypatch.setattr(TaskTrigger, "log", logging.getLogger("task"))
    caplog.set_level(logging.INFO, "task")
    monkeypatch.setattr(launch, "_PAUSE_FIRST", 0.05)
    monkeypatch.setattr(launch, "_LABELS_EVERY", 0.05)
    monkeypatch.setattr(launch, "_LOOK_EVERY", 0.1)
    monkeypatch.setattr(launches, "_ASK_AGAIN_AFTER", 0.05)
    async with memory_inbox() as inbox:
        runs = Runs(inbox)
        yield runs
        await runs.stop()


@pytest.fixture
async def fake() -> AsyncIterator[FakeDataflow]:
    """A Dataflow on loopback."""
    async with fake_dataflow() as fake:
        yield fake


@pytest.fixture
def telling_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for events tell at once what has come, and not every ten seconds."""
    monkeypatch.setattr(progress, "_FIRST_AFTER", 0.0)
    monkeypatch.setattr(progress, "_EVERY", 0.05)


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> FakeKafka:
    """The cluster that all waits for Kafka's events find."""
    kafka = FakeKafka()
    monkeypatch.setattr(kafka_source, "use_kafka", kafka.use)
    return kafka
