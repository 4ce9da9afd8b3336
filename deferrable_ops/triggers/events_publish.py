"""Publish an event, once an attempt."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from deferrable_ops.events.specifications import ChannelEvent
from deferrable_ops.inbox import Wait
from deferrable_ops.inbox.events import NewEvent
from deferrable_ops.outcome import Outcome, Success
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.events_arguments import check_payload


class PublishEventTrigger(TaskTrigger):
    """Posts one event to a channel, once an attempt.

    The arguments are those of :class:`deferrable_ops.operators.events_publish.PublishEventOperator`.
    """

    feature: ClassVar[str] = "events"
    classpath: ClassVar[str] = "deferrable_ops.triggers.events_publish.PublishEventTrigger"
    arguments: ClassVar[tuple[str, ...]] = ("channel", "payload")

    def __init__(self, *, channel: str = "", payload: Any = None, **base: Any) -> None:
        super().__init__(**base)
        self.channel = channel
        self.payload = payload

    @property
    def cancellable(self) -> bool:
        """Whether there is anything to stop: what is posted stays."""
        return False

    def validate(self) -> None:
        """Check the rendered arguments.

        :raises InputError: one of them is wrong; the message names it and the fix.
        """
        ChannelEvent(self.channel)
        check_payload(self.payload)

    async def wait(self) -> Outcome:
        """Post the event, and return where it stands in the inbox."""
        attempt = self.current.attempt
        published_by = {
            "dag_id": attempt.dag_id,
            "run_id": attempt.run_id,
            "task_id": attempt.task_id,
            "map_index": attempt.map_index,
        }
        event = NewEvent(
            ChannelEvent(self.channel).source,
            f"wait:{self.current.id}",  # the same whoever runs this, and however often
            self.payload,
            {"headers": {}, "attributes": {}, "metadata": {"verified_by": "airflow", **published_by}},
        )
        appended = await self.inbox.events.append(event)
        received_at = datetime.fromtimestamp(appended.received_at, UTC).isoformat()
        return Success({"channel": self.channel, "event": appended.number, "received_at": received_at})

    async def cancel(self, wait: Wait) -> None:
        """Stop nothing: what is posted stays."""
