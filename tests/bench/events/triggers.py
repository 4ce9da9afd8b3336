"""Our trigger whose waits are measured."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

from airflow.triggers.base import TaskSuccessEvent, TriggerEvent

from bench.events.fired import FIRED
from deferrable_ops.events import KafkaEvent, SqsEvent
from deferrable_ops.events.specifications import specification_to_json
from deferrable_ops.triggers.events.trigger import EventsTrigger

OURS: Final = "bench.events.triggers.TimedTrigger"
UNTIMED: Final = EventsTrigger.classpath
BARE: Final = "bench.webhook.triggers.BareTrigger"


class TimedTrigger(EventsTrigger):
    """An events trigger that notes when it yields its event, by the machine's monotonic clock.

    Its one event is named as its wait.
    """

    async def run(self) -> AsyncIterator[TriggerEvent]:
        (wait,) = self.events or {}
        async for event in super().run():
            FIRED[wait] = time.monotonic()
            if not isinstance(event, TaskSuccessEvent):
                raise RuntimeError(f"{wait} ended with {event!r}")
            yield event


def kafka_waits(topic: str, waits: Iterable[str], since: str | None = None) -> list[dict[str, Any]]:
    """Return the kwargs of waits for one record each, as ``EventSensor(event=KafkaEvent(...))`` makes them."""
    return [_kwargs(wait, KafkaEvent(topic, match=_match(wait)), since) for wait in waits]


def sqs_waits(queue_url: str, waits: Iterable[str]) -> list[dict[str, Any]]:
    """Return the kwargs of waits for one message each."""
    return [_kwargs(wait, SqsEvent(queue_url, dedicated=True, match=_match(wait)), None) for wait in waits]


def _match(wait: str) -> dict[str, str]:
    return {"db": "db0", "table": "orders", "wait": wait}


def _kwargs(wait: str, event: KafkaEvent | SqsEvent, since: str | None) -> dict[str, Any]:
    return {
        "events": {wait: specification_to_json(event)},
        "since": since,
        "single": True,
        "timeout": 86_400.0,
    }
