"""The fake Dataflow: its jobs, their scripts, and the gRPC server on loopback."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Literal

import grpc.aio

from deferrable_ops.testing.dataflow.jobs import FakeJob, Script, Step
from deferrable_ops.testing.dataflow.service import handlers
from deferrable_ops.testing.dataflow.trouble import Trouble
from deferrable_ops.upstreams.dataflow.jobs import state_name

SETTING = "AIRFLOW__DEFERRABLE_OPS__DATAFLOW_EMULATOR_HOST"


class FakeDataflow:
    """A fake Dataflow. A job without a script goes through the states queued, running and done without delays.

    :ivar trouble: injects errors, lost replies and delays, and counts the calls.
    :ivar second_launch: the response to a launch whose job name is the name of an active job. With ``refuse``, the
        response is the error ALREADY_EXISTS; with ``return``, it is the active job.
    :ivar list_lag: for how many seconds a new job is missing from lists of jobs.
    :ivar get_lag: for how many seconds ``GetJob`` does not find a new job.
    :ivar label_lag: for how many seconds a new job is returned without labels.
    :ivar page_limit: the maximum number of jobs or messages on one page.
    :ivar failed_location: if True, a list of jobs reports that the region did not respond.
    """

    def __init__(self) -> None:
        self.trouble = Trouble()
        self.second_launch: Literal["refuse", "return"] = "refuse"
        self.list_lag = self.get_lag = self.label_lag = 0.0
        self.page_limit = 100
        self.failed_location = False
        self._port = 0
        self._server: Any = None
        self._jobs: dict[str, FakeJob] = {}
        self._scripts: dict[str, Script] = {"": Script([Step("RUNNING"), Step("DONE")])}

    @property
    def host(self) -> str:
        """The value for the setting ``dataflow_emulator_host``."""
        return f"127.0.0.1:{self._port}"

    def script(
        self,
        prefix: str,
        *steps: Step | dict[str, Any],
        streaming: bool = False,
        hides_type: bool = False,
        stop_seconds: float = 0.0,
        list_lag: float | None = None,
        get_lag: float | None = None,
        label_lag: float | None = None,
    ) -> None:
        """Set the script for jobs that are launched after this call: the states that a job goes through.

        :param prefix: the script applies to jobs whose names begin with this prefix. If several scripts match, the
            script with the longest prefix applies.
        :param steps: the steps that a job goes through. A job without steps stays queued until :meth:`move` is called.
        :param hides_type: if True, the API does not return the type of a queued job, as with a flex template.
        :param stop_seconds: how many seconds it takes to cancel or drain a job.
        :param list_lag: for how many seconds a job is missing from lists of jobs; If None, the attribute
            :attr:`list_lag` applies.
        :param get_lag: for how many seconds ``GetJob`` does not find a job; If None, the attribute :attr:`get_lag`
            applies.
        :param label_lag: for how many seconds a job is returned without labels; If None, the attribute
            :attr:`label_lag` applies.
        """
        made = [step if isinstance(step, Step) else Step(**step) for step in steps]
        self._scripts[prefix] = Script(
            made, streaming, hides_type, stop_seconds, list_lag, get_lag, label_lag
        )

    def jobs(self, name: str = "") -> list[FakeJob]:
        """Return the jobs, the oldest first.

        :param name: return only the jobs whose names begin with `name`. By default all jobs are returned.
        """
        for job in self._jobs.values():
            job.advance()
        return [job for job in self._jobs.values() if job.name.startswith(name)]

    def job(self, name: str) -> FakeJob:
        """Return the newest job whose id is `name` or whose name begins with `name`.

        :raises LookupError: if there is no such job.
        """
        found = [job for job in self.jobs() if name in (job.id, job.name)] or self.jobs(name)
        if not found:
            raise LookupError(
                f"there is no job {name!r}; the jobs are {sorted(job.name for job in self.jobs())}"
            )
        return found[-1]

    def move(self, name: str, state: str | int) -> None:
        """Set the state of a job, for example to ``RUNNING`` or to a number, and cancel the job's remaining steps."""
        self.job(name).move(state)

    def say(self, name: str, text: str, importance: str = "BASIC") -> None:
        """Add a message to a job.

        :param importance: the importance of the message, one of DEBUG, DETAILED, BASIC, WARNING and ERROR.
        """
        self.job(name).say(text, importance)

    def replace(self, name: str) -> str:
        """Update a job: the job ends, and a new job replaces it. Return the id of the new job."""
        old = self.job(name)
        new = self.create(old.name, old.project_id, old.region, old.labels, old.request)
        old.replace(new.id)
        return new.id

    def listed_jobs(self) -> list[FakeJob]:
        """Return the jobs that ``ListJobs`` returns now: a new job is missing until its `list_lag` is over."""
        return [
            job
            for job in self.jobs()
            if job.is_older_than(self.list_lag if job.list_lag is None else job.list_lag)
        ]

    def create(
        self, name: str, project_id: str, region: str, labels: dict[str, str], request: dict[str, Any]
    ) -> FakeJob:
        """Create a job as a launch request does. The job goes through the steps of the script that matches the job's
        name.
        """
        script = self._scripts[max((p for p in self._scripts if name.startswith(p)), key=len)]
        job = FakeJob(
            id=f"{datetime.now(UTC):%Y-%m-%d_%H_%M_%S}-{len(self._jobs) + 1:019d}",
            name=name,
            project_id=project_id,
            region=region,
            labels=labels,
            request=request,
            steps=list(script.steps),
            streaming=script.streaming,
            hides_type=script.hides_type,
            stop_seconds=script.stop_seconds,
            list_lag=script.list_lag,
            get_lag=script.get_lag,
            label_lag=script.label_lag,
        )
        self._jobs[job.id] = job
        return job

    def report(self) -> dict[str, Any]:
        """Return the number of calls and all jobs, as JSON."""
        jobs = [
            {**asdict(job), "state": state_name(job.state).removeprefix("JOB_STATE_")} for job in self.jobs()
        ]
        return {"calls": dict(self.trouble.calls), "jobs": jobs}

    async def connect(self, port: int | None = None) -> None:
        """Start the gRPC server.

        :param port: the port of the gRPC server. If `port` is None, the server uses the previous port, or a free port
            at the first call.
        """
        self._server = grpc.aio.server(
            handlers=None,
            options=(
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ),
        )
        self._server.add_generic_rpc_handlers(tuple(handlers(self)))
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port if port is None else port}")
        await self._server.start()

    async def disconnect(self) -> None:
        """Close all connections and refuse new connections. The jobs continue."""
        await self._server.stop(None)


@asynccontextmanager
async def fake_dataflow(port: int = 0) -> AsyncIterator[FakeDataflow]:
    """Run a fake Dataflow in this event loop. In the ``with`` block, the setting ``dataflow_emulator_host`` contains
    the address of the fake Dataflow.

    :param port: the port of the gRPC server; 0 selects a free port.
    """
    fake = FakeDataflow()
    await fake.connect(port)
    before = os.environ.get(SETTING)
    os.environ[SETTING] = fake.host
    try:
        yield fake
    finally:
        if before is None:
            del os.environ[SETTING]
        else:
            os.environ[SETTING] = before
        await fake.disconnect()
