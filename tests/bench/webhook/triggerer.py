"""A process in which Airflow's own runner runs triggers, as in a triggerer, without Airflow's supervisor
beside it.

The triggers are made and run by ``TriggerRunner`` (with its greenback portal, its spans and its log
context). What the supervisor would answer is answered at once. The runner's main loop, which polls every
trigger every second, does not run: its cost at idle is Airflow's and grows with the number of triggers.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import psutil
import structlog
from airflow.executors.workloads.task import TaskInstanceDTO
from airflow.executors.workloads.trigger import RunTrigger
from airflow.jobs.triggerer_job_runner import TriggerRunner
from airflow.models.trigger import Trigger
from airflow.sdk.execution_time import task_runner
from sqlalchemy import Engine, event

from bench.common.processes import serve
from bench.webhook.triggers import TRIGGERS, TimedTrigger
from deferrable_ops.inbox import use_inbox


class Supervisor:
    """Answers at once, so that what is measured is not Airflow's."""

    async def asend(self, message: Any) -> None:
        """Take a message."""


class Triggerer:
    """What the bench asks of the process."""

    def __init__(self) -> None:
        self._runner = TriggerRunner()
        self._queries = 0
        event.listen(Engine, "before_cursor_execute", self._count_query)

    async def grow(self, kind: str, to: int) -> None:
        """Run triggers until there are so many of them, and all wait."""
        classpath, kwargs = TRIGGERS[kind]
        encrypted = Trigger.encrypt_kwargs(kwargs)
        for number in range(len(self._runner.triggers), to):
            self._runner.to_create.append(
                RunTrigger(
                    id=number, classpath=classpath, encrypted_kwargs=encrypted, ti=_task_instance(number)
                )
            )
        await self._runner.create_triggers()
        await _quiet()
        assert all(not details["task"].done() for details in self._runner.triggers.values())
        if kind != "bare":
            async with use_inbox(patience=float("inf")) as inbox:
                assert len(list(inbox.watcher.watched)) == to

    async def memory(self) -> int:
        """Return the bytes of memory that are this process's alone."""
        gc.collect()
        return int(psutil.Process().memory_full_info().uss)

    async def idle(self, seconds: float) -> tuple[float, float]:
        """Return the seconds of CPU time, and the queries, that this process needs a second while nothing happens."""
        queries, cpu, started = self._queries, time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        lasted = time.monotonic() - started
        return (time.process_time() - cpu) / lasted, (self._queries - queries) / lasted

    async def tokens(self) -> list[tuple[str, str]]:
        """Return the id and the token of every wait."""
        async with use_inbox(patience=float("inf")) as inbox:
            waits = await inbox.waits.find()
            return [(wait.id, await inbox.keys.token(wait.id, wait.key_id)) for wait in waits]

    async def fired(self) -> dict[str, float]:
        """Return when the trigger of each wait yielded its event, by the machine's monotonic clock."""
        return TimedTrigger.fired

    def _count_query(self, *_: object) -> None:
        self._queries += 1


def _task_instance(number: int) -> TaskInstanceDTO:
    return TaskInstanceDTO(
        id=uuid4(),
        dag_version_id=UUID(int=1),
        task_id=f"train_{number}",
        dag_id="bench",
        run_id="scheduled__2026-01-01T00:00:00+00:00",
        try_number=1,
        map_index=-1,
        pool_slots=1,
        queue="default",
        priority_weight=1,
    )


async def _quiet() -> None:
    while True:
        cpu = time.process_time()
        await asyncio.sleep(0.5)
        if time.process_time() - cpu < 0.05:
            return


@asynccontextmanager
async def _triggerer() -> AsyncIterator[Triggerer]:
    # The task logs go nowhere: they are Airflow's cost, and the same for every trigger.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "client"
    task_runner.SUPERVISOR_COMMS = Supervisor()  # type: ignore[assignment]
    yield Triggerer()


if __name__ == "__main__":
    serve(_triggerer)
