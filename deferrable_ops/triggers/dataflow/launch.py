"""Launches a Dataflow job at most once per task attempt.

Before each launch, the library looks for an existing job with the same name. If this task attempt launched that job,
the library does not launch a second job.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from deferrable_ops.backoff import Backoff
from deferrable_ops.exceptions import (
    DataflowError,
    DataflowLaunchRefused,
    DataflowRefused,
    DataflowUnavailable,
    LaunchUncertain,
)
from deferrable_ops.inbox import Wait
from deferrable_ops.triggers.dataflow.request import WAIT_LABEL, Kind
from deferrable_ops.triggers.dataflow.states import NOT_STARTED
from deferrable_ops.upstreams.dataflow.client import Dataflow, Job
from deferrable_ops.upstreams.dataflow.jobs import CANCELLING, DRAINING, FAILED

# Errors of Dataflow itself, which may be permanent: a launch is retried only for a limited time.
_SERVER_ERRORS = ("INTERNAL", "UNKNOWN", "ABORTED")
_NOT_PERMITTED = ("PERMISSION_DENIED", "UNAUTHENTICATED")
# A single 404 does not show that a job is gone.
_FEWEST_READS = 3
# In these states, the API may return a job without its labels: a job whose launcher still runs, or has failed.
_LABELLED_LATE = NOT_STARTED | {FAILED}


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
    :param gone_after: a job whose id is known is gone if it is not found for this many seconds. Dataflow may return a
        new job late.
    :param gone_every: seconds between two such reads of a job.
    :param errors_within: for how many seconds a launch is retried after an error of Dataflow itself, if
        `launch_timeout` is not set.
    """

    first_pause: float = 1.0
    longest_pause: float = 30.0
    labels_within: float = 30.0
    labels_every: float = 2.0
    searches: int = 3
    search_every: float = 5.0
    gone_after: float = 300.0
    gone_every: float = 15.0
    errors_within: float = 3600.0


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

    async def until_accepted(
        self, check: Callable[[], Awaitable[float]], timeout: float | None, *, sent: bool = False
    ) -> Job:
        """Return the job of this task attempt. Launch the job if the job does not exist yet.

        :param check: an async function that is awaited before each request is sent, and raises an error if this
            process must not launch the job any more; see :meth:`deferrable_ops.inbox.waits.launches.Claim.check`.
        :param timeout: for how many seconds a launch is retried; None means without a limit, except after an error
            that may be permanent.
        :param sent: whether an earlier run of the trigger may have launched the job.
        :raises DataflowRefused: if Dataflow refused the launch, and a retry would be refused too.
        :raises ForeignJob: if a job with this name exists already, but was not launched by this task attempt.
        :raises NotAccepted: if Dataflow did not accept the launch within `timeout`.
        """
        began = time.monotonic()
        # The start of the errors that may be permanent.
        failing_since: float | None = None
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
                sent = True
                problem, may_be_permanent = str(error), error.code in _SERVER_ERRORS
            except DataflowLaunchRefused as refused:
                # An earlier launch may have created the job before this account lost its permission.
                if not sent or refused.code not in _NOT_PERMITTED:
                    raise
                problem, may_be_permanent = str(refused), True
            else:
                self._log.info("Launched the job %s (%s)", job.name, job.id)
                return job
            pause = backoff.failed()
            now = time.monotonic()
            failing_since = (failing_since or now) if may_be_permanent else None
            limit, since = timeout, began
            if timeout is None and failing_since is not None:
                limit, since = self._timings.errors_within, failing_since
            if limit is not None and now + pause > since + limit:
                raise NotAccepted(
                    f"Dataflow accepted no launch within launch_timeout ({limit:g} s): {problem}"
                )
            self._log.warning("%s; looking for the job again in %.1f s", problem, pause)
            await asyncio.sleep(pause)


async def find_job_of_wait(
    dataflow: Dataflow, name: str, wait_id: str, *, timings: LaunchTimings = DEFAULT_TIMINGS
) -> Job | None:
    """Return the newest job with the given name and the label of the wait; None if no job has this name.

    The job may be finished. If the API has returned no label yet, and the job does not run yet or has failed, the name
    is sufficient, because the name contains a hash of the wait's id.

    :raises ForeignJob: if jobs with the given name exist, but none of these jobs has the label of the wait.
    """
    jobs = await dataflow.find(name)
    for job in jobs:
        labelled = await _with_labels(dataflow, job.id, timings)
        unlabelled = WAIT_LABEL not in labelled.labels and labelled.state in _LABELLED_LATE
        if unlabelled or labelled.labels.get(WAIT_LABEL) == wait_id:
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
    """Return the job that a wait has launched or may have launched; None if no job was found.

    :raises DataflowUnavailable: if the job was launched but is not found, and may only be returned late.
    """
    if wait.launch_answer is not None:
        return await _get_unless_gone(dataflow, wait, timings)
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


async def get_unless_gone(
    dataflow: Dataflow, job_id: str, *, timings: LaunchTimings = DEFAULT_TIMINGS
) -> Job | None:
    """Return a job that existed; None if Dataflow has not found the job for some minutes.

    :raises DataflowRefused: if Dataflow refused to return the job for another reason.
    """
    deadline, reads = time.monotonic() + timings.gone_after, 0
    while True:
        try:
            return await dataflow.get(job_id)
        except DataflowRefused as refused:
            if refused.code != "NOT_FOUND":
                raise
        reads += 1
        if reads >= _FEWEST_READS and time.monotonic() >= deadline:
            return None
        await asyncio.sleep(timings.gone_every)


async def _get_unless_gone(dataflow: Dataflow, wait: Wait, timings: LaunchTimings) -> Job | None:
    # A cancellation is retried, so it does not wait for minutes.
    job_id = wait.launch_answer["job_id"]
    job = await get_unless_gone(dataflow, job_id, timings=replace(timings, gone_after=timings.search_every))
    if job is None and time.time() - (wait.settled_at or time.time()) < timings.gone_after:
        raise DataflowUnavailable(
            f"Dataflow does not find the job {job_id} now; it may have been launched just now"
        )
    return job


async def _with_labels(dataflow: Dataflow, job_id: str, timings: LaunchTimings) -> Job:
    # The API may return a new job late, and without its labels.
    deadline = time.monotonic() + timings.labels_within
    while True:
        is_over = time.monotonic() >= deadline
        try:
            job = await dataflow.get(job_id)
            if is_over or WAIT_LABEL in job.labels or job.state in _LABELLED_LATE or job.is_finished:
                return job
        except DataflowRefused as refused:
            if refused.code != "NOT_FOUND":
                raise
            if is_over:
                raise DataflowUnavailable(
                    f"Dataflow lists the job {job_id}, but does not find it"
                ) from refused
        await asyncio.sleep(timings.labels_every)
