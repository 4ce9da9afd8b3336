"""A start writes few lines: thousands of tasks start together, and the log of a triggerer is slow."""

from __future__ import annotations

import asyncio
import logging

import pytest

from deferrable_ops.events import ChannelEvent
from deferrable_ops.operators.events import EventSensor
from deferrable_ops.operators.webhook import WebhookOperator, WebhookSensor
from deferrable_ops.testing import outside_service, running
from deferrable_ops.triggers.base import TaskTrigger

LINES = 2


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__ENDPOINT_URL", "https://airflow.example.com/deferrable-ops")
    monkeypatch.setattr(TaskTrigger, "log", logging.getLogger("task"))
    caplog.set_level(logging.INFO)


def lines_of_a_start(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name == "task"]


async def test_webhook_writes_at_most_two_lines_until_it_waits(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        outside_service() as service,
        running(WebhookOperator(task_id="train", url=service.url)) as task,
    ):
        await service.next_request()
        async with asyncio.timeout(10):
            while not any("Launched" in line for line in lines_of_a_start(caplog)):
                await asyncio.sleep(0.01)
        lines = lines_of_a_start(caplog)
        await task.call_back(None)
        await task.outcome()
    assert len(lines) <= LINES, lines


@pytest.mark.parametrize(
    "operator",
    [
        WebhookSensor(task_id="wait"),
        EventSensor(task_id="signed_off", event=ChannelEvent("signoff")),
    ],
)
async def test_sensor_writes_at_most_two_lines_until_it_waits(
    operator: WebhookSensor | EventSensor, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(operator):
        async with asyncio.timeout(10):
            while not any("Waiting for" in line for line in lines_of_a_start(caplog)):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        lines = lines_of_a_start(caplog)
    assert len(lines) <= LINES, lines
