"""The rivals: the providers' own triggers. What they leave to their user is written here, as tersely as it can be.

They are in a folder of their own, that ``scripts/bench events`` fills from ``tests/bench/requirements-events.txt``.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.providers.amazon.aws.triggers.sqs import SqsSensorTrigger
from airflow.providers.apache.kafka.triggers.await_message import AwaitMessageTrigger
from airflow.providers.apache.kafka.triggers.shared_stream import KafkaSharedStreamTrigger
from airflow.triggers.base import TriggerEvent

from bench.events.fired import FIRED


class SharedStreamTrigger(KafkaSharedStreamTrigger):
    """Fires for the one record of its wait. It is spared parsing: ours compares fields, this one looks for bytes."""

    def __init__(self, *, wait: str, **stream: Any) -> None:
        super().__init__(**stream)
        self.wait = wait

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the classpath and the kwargs that make this trigger again."""
        return "bench.events.rivals.SharedStreamTrigger", {**super().serialize()[1], "wait": self.wait}

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """Yield one event, and end."""
        wanted = quoted(self.wait)
        async for value in shared_stream:
            if wanted in value:
                FIRED[self.wait] = time.monotonic()
                yield TriggerEvent(self._decode(value))
                return


class AwaitMessage(AwaitMessageTrigger):
    """Fires for the one record of its wait."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event, and end."""
        async for event in super().run():
            FIRED[self.apply_function_args[0]] = time.monotonic()
            yield event


def value_if_wanted(wait: str, message: Any) -> str | None:
    """Return a record's value where it is the one that a wait is for: AwaitMessage's `apply_function`."""
    value: bytes = message.value()
    return value.decode() if quoted(wait) in value else None


class SqsSensor(SqsSensorTrigger):
    """Fires for the first message of its queue, of which it is named."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event, and end."""
        async for event in super().run():
            FIRED[self.sqs_queue.rpartition("/")[2]] = time.monotonic()
            yield event


def quoted(wait: str) -> bytes:
    """Return how a wait is named in a record."""
    return b'"%s"' % wait.encode()
