"""The triggers whose waits are measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, ClassVar, Final

from airflow.triggers.base import BaseTrigger, TriggerEvent

from deferrable_ops.triggers.webhook.trigger import WebhookTrigger


class BareTrigger(BaseTrigger):
    """The floor: a trigger that waits, and nothing else."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "bench.webhook.triggers.BareTrigger", {}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        await asyncio.get_running_loop().create_future()
        yield TriggerEvent(None)


class TimedTrigger(WebhookTrigger):
    """A webhook trigger that notes when it yields its event, by the machine's monotonic clock."""

    fired: ClassVar[dict[str, float]] = {}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        async for event in super().run():
            self.fired[self.current.id] = time.monotonic()
            yield event


TRIGGERS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "bare": ("bench.webhook.triggers.BareTrigger", {}),
    # As WebhookSensor(heartbeat_timeout=...) makes it: it only waits.
    "webhook": ("deferrable_ops.triggers.webhook.WebhookTrigger", {"heartbeat_timeout": 3600.0}),
    "timed": ("bench.webhook.triggers.TimedTrigger", {"heartbeat_timeout": 3600.0}),
}
"""By name: classpath and kwargs."""
