"""Thousands of tasks that are called back within seconds: all end, each with its own result, none on a worker.

The DAGs and the load are those of `scripts/bench bursts`, which measures how fast the tasks end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.bursts.ends import burst_airflow, ours, payload
from deferrable_ops.inbox import Inbox, Wait
from deferrable_ops.outcome import Success
from real_airflow import PATIENT, Hosts, Postgres

DAGS, TASKS = 20, 100
LOOKED_AT = 10  # tasks of each run whose XCom is read
PATIENCE = 3_600.0

pytestmark = [pytest.mark.long, pytest.mark.timeout(3 * PATIENCE)]


async def all_waits(inbox_url: str) -> list[Wait]:
    inbox = await Inbox.open(inbox_url, retry_timeout=60)
    try:
        return await inbox.waits.find()
    finally:
        await inbox.close()


def test_2000_tasks_called_back_within_10_s_all_end_in_the_triggerer(
    tmp_path: Path, new_postgres: Callable[[dict[str, str]], Postgres], hosts: Hosts
) -> None:
    postgres = new_postgres({"fsync": "off"})
    with burst_airflow(tmp_path, postgres, DAGS, TASKS, PATIENT, hosts) as airflow:
        ends = ours(airflow, DAGS, TASKS, PATIENCE)
        print(ends)
        assert ends.on_workers == 0
        waits = asyncio.run(all_waits(airflow.inbox_url))
        assert len(waits) == DAGS * TASKS
        assert len({(wait.attempt.dag_id, wait.attempt.task_id) for wait in waits}) == DAGS * TASKS
        for wait in waits:
            assert wait.outcome == Success(payload(wait.attempt.dag_id, wait.attempt.task_id))
        for run in [run for n in range(DAGS) for run in airflow.runs_of(f"ours_{n}")]:
            for number in range(0, TASKS, max(1, TASKS // LOOKED_AT)):
                task = run.task(f"task_{number}")
                assert task.xcom() == payload(run.dag_id, task.task_id)
