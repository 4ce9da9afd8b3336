"""Waits for messages of SQS queues, each by its trigger, as a triggerer runs it."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from unit.triggers.dataflow_support import Runs

from deferrable_ops.events import SqsEvent
from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.inbox import given_inbox
from deferrable_ops.operators.events import EventSensor
from deferrable_ops.outcome import Success
from deferrable_ops.testing import running
from deferrable_ops.triggers.base import TaskTrigger
from real_sqs import RealSqs

_numbers = itertools.count(1)


@pytest.fixture
def queue(sqs_server: RealSqs, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a queue that Airflow's connection aws_default reaches."""
    for name, value in sqs_server.connection().items():
        monkeypatch.setenv(name, value)
    return sqs_server.create_queue(f"payments-{next(_numbers)}", visibility=3)


@pytest.fixture
async def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Runs]:
    """Runs triggers on an inbox in a file, and lets tests read the task's log."""
    monkeypatch.setattr(TaskTrigger, "log", logging.getLogger("task"))
    inbox = await Inbox.open(f"sqlite+aiosqlite:///{tmp_path / 'inbox.db'}", patience=60)
    given_inbox.set(inbox)
    runs = Runs(inbox)
    yield runs
    await runs.stop()
    await inbox.close()


async def test_sensor_ends_with_a_message_that_matches(sqs_server: RealSqs, queue: str) -> None:
    match = "status == 'done' && amount > `0` && attributes.shop == 'web'"
    sensor = EventSensor(
        task_id="paid", event=SqsEvent(queue, dedicated=True, match=match), since="2020-01-01"
    )
    async with running(sensor) as task:
        await task.wait()
        sqs_server.send(queue, {"status": "open", "amount": 1}, shop="web")
        message = sqs_server.send(queue, {"status": "done", "amount": 5}, shop="web")
        outcome = await asyncio.wait_for(task.outcome(), 20)
    assert isinstance(outcome, Success)
    came = outcome.value
    assert came["payload"] == {"status": "done", "amount": 5}
    assert came["attributes"]["attributes"] == {"shop": "web"}
    metadata = came["attributes"]["metadata"]
    assert metadata["MessageId"] == message
    assert datetime.fromisoformat(came["time"]).timestamp() * 1_000 == int(metadata["SentTimestamp"])
    assert abs(datetime.now(UTC) - datetime.fromisoformat(came["time"])).total_seconds() < 20
