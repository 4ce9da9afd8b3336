"""A whole Airflow: its folder, its databases, its components."""

from __future__ import annotations

import functools
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import NullPool, create_engine, text

from real_airflow.client import AirflowClient
from real_airflow.databases import Database
from real_airflow.environment import environment, write_passwords
from real_airflow.hosts import Hosts
from real_airflow.ports import LOOPBACK, free_port
from real_airflow.processes import AIRFLOW, Component
from real_airflow.runs import Run
from real_airflow.waiting import wait_until

JOB_TYPES = {"scheduler": "SchedulerJob", "dag-processor": "DagProcessorJob", "triggerer": "TriggererJob"}


class RealAirflow:
    """An API server, a scheduler with LocalExecutor, a dag-processor and a triggerer, each its own process.

    :param home: AIRFLOW_HOME: an empty folder. Its `plugins` folder may be filled before `start`.
    :param database: where the metadata and the inbox are.
    :param dag_folders: folders with DAG files; each is a DAG bundle.
    :param extra_environment: for every component.
    :param hosts: with it, each triggerer runs on a host of its own, and all other components on one more.
    """

    def __init__(
        self,
        home: Path,
        database: Database,
        dag_folders: Sequence[Path],
        extra_environment: Mapping[str, str] | None = None,
        hosts: Hosts | None = None,
    ) -> None:
        self.home = home
        self.database = database
        self._hosts = hosts
        self._host = None if hosts is None else hosts.add(f"{home.name}-airflow")
        address, port = LOOPBACK if self._host is None else self._host.address, free_port()
        self.url = f"http://{address}:{port}"
        self.client = AirflowClient(self.url)
        self.environment = environment(home, address, port, dag_folders, database, extra_environment or {})
        self.api_server = self._component("api-server", "api-server")
        self.scheduler = self._component("scheduler", "scheduler", "--skip-serve-logs")
        self.dag_processor = self._component("dag-processor", "dag-processor")
        self.triggerer = self._component("triggerer", "triggerer", "--skip-serve-logs")
        self.extra_triggerers: list[Component] = []

    @property
    def components(self) -> list[Component]:
        """The four that always run."""
        return [self.api_server, self.scheduler, self.dag_processor, self.triggerer]

    @property
    def inbox_url(self) -> str:
        """Where the library keeps its inbox."""
        return self.database.inbox_url or f"sqlite+aiosqlite:///{self.home / 'deferrable_ops.db'}"

    def start(self, *, api_server_first: bool = False) -> None:
        """Create the databases' tables and start everything; return when all of it is ready.

        :param api_server_first: start the others when the API server is ready.
        """
        write_passwords(self.home)
        self._run("db", "migrate")
        if api_server_first:
            self._start([self.api_server])
        self._start([component for component in self.components if not component.running])

    def stop(self) -> None:
        """Kill everything. Nothing is kept, so nobody need say goodbye."""
        for component in [*self.components, *self.extra_triggerers]:
            component.kill()
        self.client.close()

    def restore(self) -> None:
        """Bring every component back as it was after `start`, and end all runs, whatever a test did."""
        for component in self.extra_triggerers:
            component.kill()
        self.extra_triggerers.clear()
        for component in self.components:
            # A triggerer that comes back still runs triggers that another has taken over. On SQLite, which
            # gives the number of a deleted trigger to the next, the event of one ends a later test's task.
            if component.altered:
                component.kill()
        self._start([component for component in self.components if not component.running])
        self._end_runs()

    def start_component(
        self, component: Component, extra_environment: Mapping[str, str] | None = None
    ) -> None:
        """Start one component again, and return when it is ready."""
        self._start([component], extra_environment)

    def pause(self, component: Component) -> None:
        """Stop all processes of a component, between two transactions. In one, all others would stop on SQLite, and on
        Postgres no other triggerer would get the triggers whose rows it has locked.
        """
        wait_until(lambda: self._is_paused_outside_transactions(component), f"{component.name} to be paused")

    def add_triggerer(self, extra_environment: Mapping[str, str] | None = None, *options: str) -> Component:
        """Start one more triggerer, and return when it is ready. `restore` removes it.

        :param options: further options of its command.
        """
        name = f"triggerer-{len(self.extra_triggerers) + 2}"
        component = self._component(name, "triggerer", "--skip-serve-logs", *options)
        self.extra_triggerers.append(component)
        self._start([component], extra_environment)
        return component

    def trigger(
        self, dag_id: str, conf: Mapping[str, Any] | None = None, logical_date: datetime | None = None
    ) -> Run:
        """Start a run of a DAG; the DAG's file may still be waiting to be parsed.

        :param logical_date: default now.
        """
        wait_until(lambda: self._knows(dag_id), f"the dag-processor to have parsed {dag_id}", timeout=240)
        date = (logical_date or datetime.now(UTC)).isoformat()
        answer = self.client.post(f"/dags/{dag_id}/dagRuns", {"logical_date": date, "conf": dict(conf or {})})
        return Run(self.client, dag_id, answer["dag_run_id"])

    @contextmanager
    def paused(self, dag_id: str, is_paused: bool = True) -> Iterator[None]:
        """Pause a DAG for a while, so that the scheduler takes no task from ``dag.test()``."""
        wait_until(lambda: self._knows(dag_id), f"{dag_id} to be parsed")
        self.client.patch(f"/dags/{dag_id}", {"is_paused": is_paused})
        try:
            yield
        finally:
            self.client.patch(f"/dags/{dag_id}", {"is_paused": not is_paused})

    def unpaused(self, dag_id: str) -> AbstractContextManager[None]:
        """Let a DAG run on its schedule for a while."""
        return self.paused(dag_id, is_paused=False)

    def runs_of(self, dag_id: str) -> list[Run]:
        """Return the runs of a DAG, whoever started them."""
        rows = self.client.get(f"/dags/{dag_id}/dagRuns")["dag_runs"]
        return [Run(self.client, dag_id, row["dag_run_id"]) for row in rows]

    def import_errors(self) -> dict[str, str]:
        """Return the error of every DAG file that cannot be imported."""
        errors = self.client.get("/importErrors", limit=100)["import_errors"]
        return {error["filename"]: error["stack_trace"] for error in errors}

    def run_command(self, *arguments: str) -> str:
        """Run `airflow ARGUMENTS` beside the components and return what it printed."""
        return self._run(*arguments)

    def run_own_command(self, *arguments: str) -> str:
        """Run `deferrable-ops ARGUMENTS` beside the components and return what it printed."""
        return self._run(*arguments, program=AIRFLOW.with_name("deferrable-ops"))

    def run_python(self, program: str, timeout: float) -> str:
        """Run a Python program in this Airflow's environment, and return what it prints."""
        return subprocess.run(
            [sys.executable, "-c", program],
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            timeout=timeout,
            check=True,
        ).stdout

    def written_files(self) -> Iterator[Path]:
        """Go through every log that anything of this Airflow wrote: task logs and the components' outputs."""
        yield from (path for path in (self.home / "logs").rglob("*") if path.is_file())
        yield from self.home.glob("*.out")

    def _is_paused_outside_transactions(self, component: Component) -> bool:
        component.pause()
        if self._is_in_transaction(component):
            component.resume()
            return False
        return True

    def _is_in_transaction(self, component: Component) -> bool:
        if self.database.backend == "sqlite":
            return any(map(_is_locked, self.home.glob("*.db")))
        engine = create_engine(self.database.metadata_url, poolclass=NullPool)
        busy = text(
            "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle' AND client_port = ANY(:ports)"
        )
        with engine.connect() as connection:
            return bool(connection.execute(busy, {"ports": component.ports()}).scalar_one())

    def _end_runs(self) -> None:
        # What a failed test leaves would be waited for, and paid for, by all tests after it.
        left = self.client.get("/dags/~/dagRuns", state=["queued", "running"], limit=1000)["dag_runs"]
        for run in left:
            self.client.patch(f"/dags/{run['dag_id']}/dagRuns/{run['dag_run_id']}", {"state": "failed"})

    def _component(self, name: str, *arguments: str) -> Component:
        component = Component(name, list(arguments), self.environment, self.home)
        if self._hosts is not None and self._host is not None:
            is_triggerer = "triggerer" in arguments
            host = self._hosts.add(f"{self.home.name}-{name}") if is_triggerer else self._host
            component.prefix = host.prefix
        return component

    def _start(
        self, components: Sequence[Component], extra_environment: Mapping[str, str] | None = None
    ) -> None:
        jobs_before = self._newest_jobs() if self.api_server.running else {}
        for component in components:
            component.start(extra_environment)
        for component in components:
            ready = functools.partial(self._is_ready, component, jobs_before)
            wait_until(ready, f"the {component.name} to be ready", timeout=240, every=0.3)

    def _is_ready(self, component: Component, jobs_before: Mapping[str, int]) -> bool:
        assert component.running, f"the {component.name} ended by itself:\n{component.tail()}"
        if component is self.api_server:
            return self.client.is_up()
        job_type = JOB_TYPES[component.name.rstrip("-0123456789")]
        return self._newest_jobs().get(job_type, 0) > jobs_before.get(job_type, 0)

    def _newest_jobs(self) -> dict[str, int]:
        # Numbers and not times: a component may run with another clock.
        jobs = self.client.get("/jobs", job_state="running", order_by="id", limit=10_000)["jobs"]
        return {job["job_type"]: job["id"] for job in jobs}

    def _knows(self, dag_id: str) -> bool:
        if self.client.find(f"/dags/{dag_id}") is not None:
            return True
        errors = self.import_errors()
        assert not errors, "\n".join(f"{file} cannot be imported:\n{error}" for file, error in errors.items())
        return False

    def _run(self, *arguments: str, program: Path = AIRFLOW) -> str:
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                [os.fspath(program), *arguments],
                env=self.environment,
                cwd=self.home,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
            output.seek(0)
            printed = output.read()
        assert done.returncode == 0, f"{program.name} {' '.join(arguments)} failed:\n{printed}"
        return printed


def _is_locked(file: Path) -> bool:
    connection = sqlite3.connect(file, timeout=2)
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        return True
    finally:
        connection.close()
    return False
