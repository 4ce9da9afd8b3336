"""The rival: a trigger of plain Airflow that sets its XCom and ends its task."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent

SECONDS = 10.0
"""All triggers of a burst fire within this time."""
_POLL = 0.25


class BareTrigger(BaseTrigger):
    """Waits for its moment of the burst, sets the XCom ``return_value``, and ends its task.

    :param folder: the trigger creates a file in it when it runs; the burst begins when the file ``go`` exists.
    :param moment: when in the burst the trigger fires; 0 is the beginning, 1 the end.
    """

    def __init__(self, folder: str, moment: float) -> None:
        super().__init__()
        self.folder = folder
        self.moment = moment

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "bench.bursts.triggers.BareTrigger", {"folder": self.folder, "moment": self.moment}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        from airflow.sdk.execution_time.xcom import XCom

        instance = self.task_instance
        folder = Path(self.folder)
        (folder / f"{instance.run_id}-{instance.task_id}").touch()
        while not (folder / "go").exists():
            await asyncio.sleep(_POLL)
        await asyncio.sleep((folder / "go").stat().st_mtime + SECONDS * self.moment - time.time())
        await XCom.aset(
            key="return_value",
            value={"n": self.moment},
            dag_id=instance.dag_id,
            run_id=instance.run_id,
            task_id=instance.task_id,
            map_index=instance.map_index,
        )
        yield TaskSuccessEvent()
