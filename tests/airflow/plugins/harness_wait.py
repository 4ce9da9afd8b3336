"""The smallest wait there is, to test the harness without the library."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperator
from airflow.triggers.base import BaseTrigger, StartTriggerArgs, TaskSuccessEvent, TriggerEvent


class FileTrigger(BaseTrigger):
    """Wait until a file exists; end the task here, or hand over to a worker."""

    def __init__(self, path: str, through_a_worker: bool) -> None:
        super().__init__()
        self.path = path
        self.through_a_worker = through_a_worker

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Name the class and its arguments."""
        return "harness_wait.FileTrigger", {"path": self.path, "through_a_worker": self.through_a_worker}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look every 100 ms."""
        self.log.info("waiting for %s", self.path)
        while not Path(self.path).exists():
            await asyncio.sleep(0.1)
        yield TriggerEvent("found") if self.through_a_worker else TaskSuccessEvent()


class FileOperator(BaseOperator):
    """Wait until a file exists, without any worker, or between two of them."""

    template_fields = ("path",)
    start_trigger_args = StartTriggerArgs("harness_wait.FileTrigger", trigger_kwargs={}, next_method="resume")
    start_from_trigger = False

    def __init__(self, *, path: str, through_a_worker: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.through_a_worker = through_a_worker
        self.start_from_trigger = not through_a_worker
        kwargs = {"path": path, "through_a_worker": through_a_worker}
        self.start_trigger_args = replace(self.start_trigger_args, trigger_kwargs=kwargs)

    def execute(self, context: Any) -> None:
        """Defer."""
        self.defer(trigger=FileTrigger(self.path, self.through_a_worker), method_name="resume")

    def resume(self, context: Any, event: str) -> dict[str, Any]:
        """Return something that is not a string."""
        return {"event": event, "numbers": [1, 2.5, None, True]}
