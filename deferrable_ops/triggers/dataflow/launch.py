"""Launches a Dataflow job at most once per task attempt.

Before each launch, the library looks for an existing job with the same name. If this task attempt launched that job,
the library does not launch a second job.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from deferrable_ops.backoff import Backoff
from deferrable_ops.exceptions import DataflowError, DataflowRefused, LaunchUncertain
from deferrable_ops.inbox import Wait
from deferrable_ops.triggers.dataflow.request import WAIT_LABEL, Kind
from deferrable_ops.triggers.dataflow.states import NOT_STARTED
from deferrable_ops.upstreams.dataflow.client import Dataflow, Job
from deferrable_ops.upstreams.dataflow.jobs import CANCELLING, DRAINING


@dataclass(frozen=True, slots=True)
class LaunchTimings:
    """The pauses between retries of a launch, and between requests that look for a job.

    :param first_pause: seconds before the first retry of a launch; the pause doubles with each further retry.
    :param longest_pause: the longest pause between two retries of a launch, in seconds.
    :param labels_within: for how many seconds the API may return a new job without its labels.
    :param labels_every: seconds between two requests for a job's labels.
    :param searches: how many times the library looks for a job whose launch got no response. Dataflow may create such
        a job some seconds after the launch.
    :param search_every: seconds between two such searches for a job.
    """

    first_pause: float = 1.0
    longest_pause: float = 30.0
    labels_within: float = 30.0
    labels_every: float = 2.0
    searches: int = 3
    search_every: float = 5.0


DEFAULT_TIMINGS: Final = LaunchTimings()


class ForeignJob(DataflowError):
    """A job with the name for this task's job exists already, but this task attempt did not launch that job."""


class NotAccepted(DataflowError):
    """Dataflow did not accept the launch of a job within `launch_timeout`."""


class Launch:
    """Launches the Dataflow job of one task attempt.

    :param request: the whole launch request, with the job's name and a label that contains the id of the wait.
    :param name: the job's name.
    """

    def __init__(
        self,
        dataflow: Dataflow,
        kind: Kind,
        request: dict[str, Any],
        name: str,
        wait_id: str,
        log: Any,
        *,
        timings: LaunchTimings = DEFAULT_TIMINGS,
    ) -> None:
        self._dataflow = dataflow
        self._kind = kind
        self._request = request
        self._name = name
        self._wait_id = wait_id
        self._log = log
        self._timings = timings

    async def until_accepted(self, check: Callable[[], Awaitable[float]], timeout: float | None) -> Job:
        """Return the job of this task attempt. Launch the job if the job does not exist yet.

        :param check: an async function that is awaited before each request is sent, and raises an error if this
            process must not launch the job any more; see :meth:`deferrable_ops.inbox.waits.launches.Claim.check`.
        :param timeout: for how many seconds a launch is retried; None means without a limit.
        :raises DataflowRefused: if Dataflow refused the launch, and a retry would be refused too.
        :raises ForeignJob: if a job with this name exists already, but was not launched by this task attempt.
        :raises NotAccepted: if Dataflow did not accept the launch within `timeout`.
        """
        retry_until = float("inf") if timeout is None else time.monotonic() + timeout
        backoff = Backoff(first_pause=self._timings.first_pause, longest_pause=self._timings.longest_pause)
        while True:
            job = await find_job_of_wait(self._dataflow, self._name, self._wait_id, timings=self._timings)
            if job is not None:
                self._log.info(
                    "Adopted the job %s (%s), which this attempt of the task has launched before",
                    job.name,
                    job.id,
                )
                return job
            try:
                job = await self._dataflow.launch(self._kind, self._request, check)
            except LaunchUncertain as error:
                problem = str(error)
            else:
                self._log.info("Launched the job %s (%s)", job.name, job.id)
                return job
            pause = backoff.failed()
            if time.monotonic() + pause > retry_until:
                raise NotAccepted(
                    f"Dataflow accepted no launch within launch_timeout ({timeout:g} s): {problem}"
                )
            self._log.warning("%s; looking for the job again in %.1f s", problem, pause)
            await asyncio.sleep(pause)


async def find_job_of_wait(
    dataflow: Dataflow, name: str, wait_id: str, *, timings: LaunchTimings = DEFAULT_TIMINGS
) -> Job | None:
    """Return the newest job with the given name and the label of the wait; None if no job has this name.

    The job may be finished.

    :raises ForeignJob: if jobs with the given name exist, but none of these jobs has the label of the wait.
    """
    jobs = await dataflow.find(name)
    for job in jobs:
        labelled = await _with_labels(dataflow, job.id, timings)
        if labelled.labels.get(WAIT_LABEL) == wait_id:
            return labelled
    if jobs:
        raise ForeignJob(
            f"the job {jobs[0].id} has the name {name} but not this attempt's label {WAIT_LABEL}={wait_id}, so this "
            "task did not launch it; set another job_name= for this task"
        )
    return None


async def find_launched(
    dataflow: Dataflow, name: str, wait: Wait, *, timings: LaunchTimings = DEFAULT_TIMINGS
) -> Job | None:
    """Return the job that a wait has launched or may have launched; None if no job was found."""
    if wait.launch_answer is not None:
        try:
            return await dataflow.get(wait.launch_answer["job_id"])
        except DataflowRefused as refused:
            # The job existed, but Dataflow deletes old jobs.
            if refused.code == "NOT_FOUND":
                return None
            raise
    for search in range(timings.searches):
        await asyncio.sleep(timings.search_every if search else 0)
        try:
            job = await find_job_of_wait(dataflow, name, wait.id, timings=timings)
        except ForeignJob:
            return None
        if job is not None:
            return job
    return None


async def stop_job(dataflow: Dataflow, job: Job, how: Literal["cancel", "drain"]) -> Job:
    """Request that Dataflow stops a job, or the job that replaced this job. Ignore a job that is stopping or finished.

    :param how: how to stop the job: "cancel" or "drain". With "drain", a running streaming job is drained, and any
        other job is cancelled, because it cannot be drained.
    :return: the job as Dataflow returned it after the request.
    """
    while job.replaced_by is not None:
        job = await dataflow.get(job.replaced_by)
    drainable = job.is_streaming and job.state not in NOT_STARTED
    how = "drain" if how == "drain" and drainable else "cancel"
    if job.is_finished or job.state == CANCELLING or (how == "drain" and job.state == DRAINING):
        return job
    return await dataflow.stop(job.id, how)


async def _with_labels(dataflow: Dataflow, job_id: str, timings: LaunchTimings) -> Job:
    # If a job has not started, the API may return it without its labels.
    deadline = time.monotonic() + timings.labels_within
    job = await dataflow.get(job_id)
    while WAIT_LABEL not in job.labels and job.state in NOT_STARTED and time.monotonic() < deadline:
        await asyncio.sleep(timings.labels_every)
        job = await dataflow.get(job_id)
    return job
