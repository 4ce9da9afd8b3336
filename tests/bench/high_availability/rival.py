"""The rival: airflow-ha's way, a PythonSensor that pokes, in a process of its own for each task.

Each process is forked from one that has imported what a worker imports, so that it shares that memory. The rival is
spared its supervisor process, the worker's own, parsing the DAG's file, and the XCom that it sends at each poke.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import airflow.sdk.execution_time.task_runner
import psutil
from airflow.providers.standard.sensors.python import PythonSensor
from airflow.sdk.bases.operator import ExecutorSafeguard

from bench.common.processes import serve
from bench.high_availability.checks import is_well
from deferrable_ops.high_availability import Action


class Workers:
    """What the bench asks of the process."""

    def __init__(self) -> None:
        self._pids: list[int] = []
        ExecutorSafeguard.test_mode = True
        gc.collect()
        gc.freeze()

    async def check(self, more: int, interval: float) -> None:
        """Run more sensors."""
        for _ in range(more):
            pid = os.fork()
            if pid == 0:
                _poke_forever(interval)
            self._pids.append(pid)

    async def measure(self, seconds: float) -> tuple[float, float]:
        """Return the bytes that one process has for itself alone, and CPU seconds of one in each second."""
        processes = [psutil.Process(pid) for pid in self._pids]
        before, started = _cpu(processes), time.monotonic()
        await asyncio.sleep(seconds)
        share = (_cpu(processes) - before) / (time.monotonic() - started)
        memory = sum(process.memory_full_info().uss for process in processes)
        return memory / len(processes), share / len(processes)

    async def stop(self) -> None:
        """End them all."""
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(os.waitpid, pid, 0)
        self._pids.clear()


def _poke_forever(interval: float) -> None:
    # What airflow-ha makes of a check: the sensor goes on while the action is CONTINUE.
    try:
        sensor = PythonSensor(
            task_id="ha",
            python_callable=lambda **context: is_well(**context)[1] is not Action.CONTINUE,
            poke_interval=interval,
            timeout=86_400,
        )
        sensor.execute({})
    finally:
        os._exit(1)


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@asynccontextmanager
async def _workers() -> AsyncIterator[Workers]:
    assert airflow.sdk.execution_time.task_runner  # what a worker's process has imported
    workers = Workers()
    yield workers


if __name__ == "__main__":
    serve(_workers)
