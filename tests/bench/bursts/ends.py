"""The time until all tasks of a burst have ended, on a real Airflow with Postgres."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import httpx

from bench.bursts.triggers import SECONDS
from bench.common.command import Setting
from bench.common.figures import Figure, ratio
from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.database.schema import IS_WAITING
from real_airflow import Hosts, Postgres, RealAirflow, Run, postgres_database, wait_until

_IN_FLIGHT = 50
"""Callbacks that are sent at the same time."""
PATIENCE = 240.0
"""Seconds in which all tasks must start, and in which all must end."""


@dataclass(frozen=True, slots=True)
class Ends:
    """When the tasks of a burst ended.

    :param first: seconds from the beginning of the burst to the first end.
    :param last: seconds to the last end.
    :param on_workers: the number of tasks that ended on a worker.
    :param started: seconds from the start of the runs until all tasks waited.
    """

    started: float
    first: float
    last: float
    on_workers: int


def measure(setting: Setting) -> Iterable[Figure]:
    """Call 2,000 waits back within 10 s, and let 2,000 triggers of plain Airflow fire within 10 s."""
    dags, tasks = (2, 20) if setting.quick else (20, 100)
    _, postgres = setting.databases
    assert postgres.server is not None
    ready = setting.folder / "ready"
    ready.mkdir()
    with burst_airflow(setting.folder, postgres.server, dags, tasks, {"BURST_FOLDER": str(ready)}) as airflow:
        rounds = [(ours(airflow, dags, tasks), _bare(airflow, dags, tasks, ready)) for _ in setting.rounds()]
    count = f"{dags * tasks:,}"
    yield ratio(
        f"last of {count} ends",
        [(ours.last, bare.last) for ours, bare in rounds],
        target=1.3,
        against="bare XCom.aset and TaskSuccessEvent",
        unit="s",
    )
    yield ratio(
        f"first of {count} ends / last",
        [(ours.first, ours.last) for ours, _ in rounds],
        target=0.1,
        against="last",
        unit="s",
    )
    yield ratio(
        f"{count} tasks wait",
        [(ours.started, bare.started) for ours, bare in rounds],
        target=None,
        against="bare",
        unit="s",
    )
    on_workers = sum(ours.on_workers for ours, _ in rounds)
    yield Figure(f"of {count}, ends on a worker", on_workers, target=0, unit="")


@contextmanager
def burst_airflow(
    folder: Path,
    server: Postgres,
    dags: int,
    tasks: int,
    environment: Mapping[str, str] | None = None,
    hosts: Hosts | None = None,
) -> Iterator[RealAirflow]:
    """Run an Airflow with the DAGs of the bench meanwhile.

    :param folder: the folder in which AIRFLOW_HOME is created.
    :param dags: the number of DAGs of each kind.
    :param tasks: the number of tasks of each DAG.
    :param hosts: where the components run, by default all on this machine.
    """
    home = folder / "airflow"
    home.mkdir()
    airflow = RealAirflow(
        home,
        postgres_database(server),
        [Path(__file__).parent / "dags"],
        {
            "AIRFLOW__TRIGGERER__CAPACITY": str(2 * dags * tasks),
            "BURST_DAGS": str(dags),
            "BURST_TASKS": str(tasks),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **(environment or {}),
        },
        hosts,
    )
    try:
        airflow.start()
        yield airflow
    finally:
        airflow.stop()


def ours(airflow: RealAirflow, dags: int, tasks: int, patience: float = PATIENCE) -> Ends:
    """Run the DAGs, call all their tasks back within 10 s, each with its own name, and wait until all have ended.

    :param patience: seconds in which all tasks must start, and in which all must end.
    """
    started = time.monotonic()
    runs = [airflow.trigger(f"ours_{n}") for n in range(dags)]
    return asyncio.run(_call_back(airflow, runs, tasks, started, patience))


def payload(dag_id: str, task_id: str) -> dict[str, str]:
    """Return what a task is called back with, which is its result."""
    return {"n": f"{dag_id}.{task_id}"}


async def _call_back(
    airflow: RealAirflow, runs: list[Run], tasks: int, started: float, patience: float
) -> Ends:
    inbox = await Inbox.open(airflow.inbox_url, retry_timeout=60)
    run_ids = {run.run_id for run in runs}
    ends_at = time.monotonic() + patience
    while True:
        waits = [wait for wait in await inbox.waits.find(IS_WAITING) if wait.attempt.run_id in run_ids]
        if len(waits) == len(runs) * tasks:
            break
        if time.monotonic() > ends_at:
            raise TimeoutError(f"{len(waits)} of {len(runs) * tasks} waits were registered")
        await asyncio.sleep(1)
    waiting_after = time.monotonic() - started
    calls = [
        (
            f"{airflow.url}/deferrable-ops/callbacks/{await inbox.keys.token(wait.id, wait.key_id)}",
            payload(wait.attempt.dag_id, wait.attempt.task_id),
        )
        for wait in waits
    ]
    await inbox.close()
    slots = asyncio.Semaphore(_IN_FLIGHT)
    began = time.time()

    async def call(http: httpx.AsyncClient, number: int, url: str, body: dict[str, str]) -> None:
        await asyncio.sleep(began + SECONDS * number / len(calls) - time.time())
        async with slots:
            (await http.post(url, json=body)).raise_for_status()

    async with httpx.AsyncClient(trust_env=False, timeout=patience) as http:
        await asyncio.gather(*(call(http, number, *one) for number, one in enumerate(calls)))
    return await asyncio.to_thread(_ends, runs, tasks, waiting_after, began, patience)


def _bare(airflow: RealAirflow, dags: int, tasks: int, ready: Path) -> Ends:
    started = time.monotonic()
    runs = [airflow.trigger(f"bare_{n}") for n in range(dags)]
    wait_until(
        lambda: len(list(ready.iterdir())) == dags * tasks, "all bare triggers to run", PATIENCE, every=1
    )
    waiting_after = time.monotonic() - started
    (ready / "go").touch()
    ends = _ends(runs, tasks, waiting_after, (ready / "go").stat().st_mtime, PATIENCE)
    for file in ready.iterdir():
        file.unlink()
    return ends


def _ends(runs: list[Run], tasks: int, waiting_after: float, began: float, patience: float) -> Ends:
    for run in runs:
        run.wait_for("success", timeout=patience)
    rows = [
        row
        for run in runs
        for row in run.client.get(f"{run.path}/taskInstances", limit=tasks)["task_instances"]
    ]
    ended = [datetime.fromisoformat(row["end_date"]).timestamp() - began for row in rows]
    return Ends(waiting_after, min(ended), max(ended), sum(run.worker_processes() for run in runs))
