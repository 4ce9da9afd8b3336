"""The launching request, while the service does not answer."""

from __future__ import annotations

import asyncio

import pytest

from deferrable_ops.operators.webhook import WebhookOperator
from deferrable_ops.outages import outages
from deferrable_ops.testing import outside_service, running
from deferrable_ops.triggers.webhook import launch


async def test_outage_of_the_service_is_reported_until_the_service_accepts_the_launch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "_FIRST_BACKOFF", 0.05)
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__ENDPOINT_URL", "https://airflow.example.com/deferrable-ops")
    async with outside_service() as service:
        service.answers = [(503, {"error": "maintenance"})] * 3
        async with running(WebhookOperator(task_id="train", url=service.url)) as task, asyncio.timeout(20):
            # Another test may have left an outage of this source.
            while not any("maintenance" in one.error for one in outages.active()):
                await asyncio.sleep(0.01)
            while (await task.wait()).launched_at is None:
                await asyncio.sleep(0.01)
            assert "HTTP (127.0.0.1)" not in [one.source for one in outages.active()]
