"""The rival: airflow-ha's sensor, each run as LocalExecutor runs a task: by a supervisor, in a process beside it.

The supervisors are forked from a process that has imported what a scheduler imports, so that they share that memory.
Each forks its task's process, which imports the DAG's file. The rival is spared Airflow's API, which is answered within
the supervisor, and its log.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import airflow.jobs.scheduler_job_runner
import httpx
import psutil
import structlog
from airflow.sdk.api.client import Client
from airflow.sdk.api.datamodels._generated import BundleInfo, TaskInstance
from airflow.sdk.execution_time.supervisor import ActivitySubprocess

from bench.common.processes import serve

_DAG_FILE = Path(__file__).with_name("rival_dag.py")
_POKED, _ENDED = b"p", b"e"


class Workers:
    """What the bench asks of the process."""

    def __init__(self) -> None:
        assert airflow.jobs.scheduler_job_runner
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
        self._supervisors: list[int] = []
        gc.collect()
        gc.freeze()

    async def check(self, many: int) -> None:
        """Run sensors, and return once each has poked.

        :raises RuntimeError: one of them has ended.
        """
        heard, told = os.pipe()
        for _ in range(many):
            pid = os.fork()
            if pid == 0:
                _supervise(told)
            self._supervisors.append(pid)
        for _ in range(many):
            if await asyncio.to_thread(os.read, heard, 1) == _ENDED:
                raise RuntimeError("airflow-ha's sensor has ended")

    async def measure(self, seconds: float) -> tuple[float, float, float]:
        """Return the bytes that a sensor's processes have for themselves alone, the CPU seconds that they take in
        each second, and how many they are.
        """
        processes = psutil.Process().children(recursive=True)
        before, started = _cpu(processes), time.monotonic()
        await asyncio.sleep(seconds)
        share = (_cpu(processes) - before) / (time.monotonic() - started)
        memory = sum(process.memory_full_info().uss for process in processes)
        sensors = len(self._supervisors)
        return memory / sensors, share / sensors, len(processes) / sensors

    async def stop(self) -> None:
        """End them all."""
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for pid in self._supervisors:
            await asyncio.to_thread(os.waitpid, pid, 0)
        self._supervisors.clear()


def _supervise(told: int) -> None:
    try:
        client = Client(
            base_url=None, dry_run=True, token="", transport=httpx.MockTransport(_Answers(told).answer)
        )
        task = TaskInstance(
            id=uuid4(), dag_id="watched", task_id="watch", run_id="run", try_number=1, dag_version_id=uuid4()
        )
        ActivitySubprocess.start(
            what=task, dag_rel_path=_DAG_FILE.name, bundle_info=BundleInfo(name="dags-folder"), client=client
        ).wait()
    except BaseException:
        traceback.print_exc()
    finally:
        os.write(told, _ENDED)
        os._exit(1)


class _Answers:
    """What the API answers to a supervisor. It tells of the first poke: of the result that it sends."""

    def __init__(self, told: int) -> None:
        self._told: int | None = told

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/xcoms/") and self._told is not None:
            os.write(self._told, _POKED)
            self._told = None
        return httpx.Response(200, json=_RUN if request.url.path.endswith("/run") else {"ok": True})


_NOW = datetime.now(UTC).isoformat()
_RUN = {
    "max_tries": 0,
    "dag_run": {
        "dag_id": "watched",
        "run_id": "run",
        "run_type": "manual",
        "state": "running",
        "conf": {},
        "consumed_asset_events": [],
        "partition_key": None,
        "run_after": _NOW,
        "logical_date": _NOW,
        "data_interval_start": _NOW,
        "data_interval_end": _NOW,
        "start_date": _NOW,
        "end_date": None,
    },
}


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@asynccontextmanager
async def _workers() -> AsyncIterator[Workers]:
    yield Workers()


if __name__ == "__main__":
    serve(_workers)
