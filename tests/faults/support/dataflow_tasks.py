"""A task that launches a Dataflow job, and what must be true of it at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from deferrable_ops.inbox import Inbox, Wait
from real_airflow import RUNNING, DataflowJob, OutsideDataflow, RealAirflow, Run, Task, wait_until


@dataclass(frozen=True)
class DataflowTask:
    """One run of a DAG of tests/airflow/dags/dataflow.py, whose jobs' names begin with a prefix of its own."""

    dataflow: OutsideDataflow
    prefix: str
    task: Task

    @classmethod
    def launched(
        cls, airflow: RealAirflow, dataflow: OutsideDataflow, dag_id: str, *steps: dict[str, Any]
    ) -> DataflowTask:
        """Trigger the run.

        :param steps: what becomes of its job; none lets it run.
        """
        prefix = dataflow.new_prefix()
        dataflow.script(prefix, *(steps or [RUNNING]))
        return cls(dataflow, prefix, airflow.trigger(dag_id, {"job": prefix}).task("job"))

    def wait_for_job(self, timeout: float = 60) -> DataflowJob:
        """Return its job once it exists."""
        return self.dataflow.wait_for_jobs(1, self.prefix, timeout)[0]

    def wait_until_refused(self) -> None:
        """Wait until the launch failed, and is to be tried again."""
        self.wait_for_log("retrying the launch in")

    def wait_for_log(self, text: str, timeout: float = 60) -> None:
        """Wait until the task's log holds a text."""
        wait_until(lambda: text in self.task.log(), f"{text!r} in the log of {self.task}", timeout)

    def end(self) -> None:
        """End the job unless it ends by itself, and check that the task ends with it."""
        job = self.wait_for_job(timeout=90)
        if job.state == "RUNNING":
            self.dataflow.tell("move", job.id, "DONE")
        self.task.run.wait_for("success")
        value = self.task.xcom()
        # The value of a classic template's task is the job's id.
        assert (value if isinstance(value, str) else value["id"]) == self.task.xcom("job_id") == job.id
        self.assert_undisturbed()

    def assert_undisturbed(self) -> None:
        """Check that there is one job and one attempt, that nothing was stopped, and who took part."""
        [job] = self.dataflow.jobs(self.prefix)
        assert job.stops_asked == []
        assert [attempt.number for attempt in self.task.tries()] == [1]
        assert self.task.run.worker_processes() == 0


def waits_of(airflow: RealAirflow, runs: Iterable[Run]) -> list[Wait]:
    """Return the waits of some runs."""
    return asyncio.run(_waits_of(airflow, {run.run_id for run in runs}))


async def _waits_of(airflow: RealAirflow, run_ids: set[str]) -> list[Wait]:
    inbox = await Inbox.open(airflow.inbox_url, retry_timeout=60)
    found = [wait for wait in await inbox.waits.find() if wait.attempt.run_id in run_ids]
    await inbox.close()
    return found
