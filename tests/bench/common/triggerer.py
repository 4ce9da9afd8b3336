"""Airflow's own runner of triggers, as in a triggerer, without Airflow's supervisor beside it.

The triggers are made and run by ``TriggerRunner`` (with its greenback portal, its spans and its log
context). What the supervisor would answer is answered at once. The runner's main loop, which polls every
trigger every second, does not run: its cost at idle is Airflow's and grows with the number of triggers.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Iterable
from typing import Any, Final
from uuid import UUID, uuid4

import psutil
import structlog
from airflow.executors.workloads.task import TaskInstanceDTO
from airflow.executors.workloads.trigger import RunTrigger
from airflow.jobs.triggerer_job_runner import TriggerRunner
from airflow.models.trigger import Trigger
from airflow.sdk.execution_time import task_runner

_LOOK_SECONDS: Final = 0.2
_CALM_LOOKS: Final = 5
_IDLE_SHARE: Final = 0.1  # of a core
_LATE_SECONDS: Final = 0.05


class Supervisor:
    """Answers at once, so that what is measured is not Airflow's."""

    async def asend(self, message: Any) -> None:
        """Take a message."""


class Triggerer:
    """Runs triggers, each of a task of its own. One of them in a process."""

    def __init__(self) -> None:
        # The task logs go nowhere: they are Airflow's cost, and the same for every trigger.
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
        os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "client"
        task_runner.SUPERVISOR_COMMS = Supervisor()  # type: ignore[assignment]
        self._runner = TriggerRunner()

    @property
    def count(self) -> int:
        """How many triggers run.

        :raises RuntimeError: one has ended, which none should.
        """
        if self._runner.events or self._runner.failed_triggers:
            raise RuntimeError(f"ended: {[*self._runner.events, *self._runner.failed_triggers][:3]}")
        return len(self._runner.triggers)

    async def start(self, classpath: str, kwargs_of_each: Iterable[dict[str, Any]]) -> None:
        """Run more triggers."""
        for number, kwargs in enumerate(kwargs_of_each, self.count):
            encrypted = Trigger.encrypt_kwargs(kwargs)
            ti = _task_instance(number)
            self._runner.to_create.append(
                RunTrigger(id=number, classpath=classpath, encrypted_kwargs=encrypted, ti=ti)
            )
        await self._runner.create_triggers()

    async def quiet(self) -> None:
        """Return once the process has had nothing to do for a second.

        A process that used no CPU time may have been waiting for a busy machine: then its timers are late, too.
        """
        calm = 0
        while calm < _CALM_LOOKS:
            cpu, began = time.process_time(), time.monotonic()
            await asyncio.sleep(_LOOK_SECONDS)
            used, late = time.process_time() - cpu, time.monotonic() - began - _LOOK_SECONDS
            calm = calm + 1 if used < _IDLE_SHARE * _LOOK_SECONDS and late < _LATE_SECONDS else 0

    async def memory(self) -> int:
        """Return the bytes of memory that are this process's alone."""
        gc.collect()
        return int(psutil.Process().memory_full_info().uss)


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
