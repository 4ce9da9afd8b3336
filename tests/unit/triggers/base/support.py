"""A trigger that does what a test wants, and how a test runs it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, ClassVar
from uuid import uuid4

from airflow.triggers.base import TriggerEvent

from deferrable_ops import Failure, Outcome
from deferrable_ops.inbox import Inbox, NewWait, Wait
from deferrable_ops.triggers.base import TaskTrigger


class Scripted(TaskTrigger):
    """A trigger with a scripted outcome, error or wait."""

    feature: ClassVar[str] = "scripted"
    classpath: ClassVar[str] = "unit.triggers.base.support.Scripted"
    arguments: ClassVar[tuple[str, ...]] = ()

    def __init__(self, does: Any = None, **base: Any) -> None:
        super().__init__(**base)
        self.does = does
        self.cancelled: list[str] = []

    async def wait(self) -> Outcome:
        if isinstance(self.does, BaseException):
            raise self.does
        if self.does == "wait":
            return await self.wait_until_settled()
        return self.does  # type: ignore[no-any-return]

    async def cancel(self, wait: Wait) -> None:
        self.cancelled.append(wait.id)


def in_triggerer(trigger: TaskTrigger, try_number: int = 1) -> TaskTrigger:
    """Set the task instance, as the triggerer does."""
    trigger.task_instance = SimpleNamespace(  # type: ignore[assignment]
        id=uuid4(), dag_id="dag", run_id="run", task_id="task", map_index=-1, try_number=try_number
    )
    return trigger


async def event_of(trigger: TaskTrigger) -> TriggerEvent:
    events = [event async for event in trigger.run()]
    assert len(events) == 1
    return events[0]


class Working(Scripted):
    """A trigger whose work races with the inbox."""

    ended = False

    async def wait(self) -> Outcome:
        return await self.race_with_settlement(self.work())

    async def work(self) -> Outcome:
        try:
            return await super().wait() if self.does != "wait" else await asyncio.Future()
        finally:
            self.ended = True

    def must_cancel_work(self, outcome: Outcome) -> bool:
        return isinstance(outcome, Failure)


async def register(inbox: Inbox, trigger: TaskTrigger) -> str:
    attempt = trigger.identify()
    await inbox.waits.register(NewWait(attempt, "scripted", 60, trigger=b"encrypted"))
    return attempt.wait_id
