"""Launches a Dataflow job at most once per task attempt.

Before each launch, the library looks for an existing job with the same name. If this task attempt launched that job,
the library does not launch a second job.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime
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
from deferrable_ops.upstreams.dataflow.jobs import CANCELLING, DRAINING, FAILED, RESOURCE_CLEANING_UP

# Errors of Dataflow itself, which may be permanent: a launch is retried only for a limited time.
_SERVER_ERRORS = ("INTERNAL", "UNKNOWN", "ABORTED")
_NOT_PERMITTED = ("PERMISSION_DENIED", "UNAUTHENTICATED")
FEWEST_READS: Final = 3
"""A trigger treats a job as gone, or a refusal as final, only after this many refused reads in a row."""
# In these states, the API may return a job without its labels: a job whose launcher still runs, or has failed.
_LABELLED_LATE = NOT_STARTED | {FAILED}


@dataclass(frozen=True, slots=True)
class LaunchTimings:
    """The pauses between retries of a launch request, and between the API requests that look for a job.

    :param first_pause: seconds before the first retry of a launch; the pause doubles with each further retry.
    :param longest_pause: the longest pause between two retries of a launch, in seconds.
    :param labels_within: for how many seconds the library waits for the labels of a new job. The API may first return
        the job without labels.
    :param labels_every: seconds between two requests for a job's labels.
    :param searches: the maximum number of times that the library looks for a job whose launch got no response. Dataflow
        may create such a job some seconds after the launch.
    :param search_every: seconds between two searches for a job whose launch got no response.
    :param gone_after: the library assumes that a job with a known id no longer exists if Dataflow has not found the job
        for this many seconds. Dataflow may not find a new job at first.
    :param gone_every: seconds between two reads of a job that Dataflow does not find.
    :param errors_within: for how many seconds a launch is retried after an internal error of Dataflow, if
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

_STOPPING: Final = frozenset({CANCELLING, DRAINING, RESOURCE_CLEANING_UP})
# By how many seconds the clocks of Dataflow and of the inbox's database may differ.
_CLOCK_DIFFERENCE: Final = 3_600.0


class ForeignJob(DataflowError):
    """Raised if a job that this task attempt did not launch already has the job name of this task."""


class NotAccepted(DataflowError):
    """Raised if Dataflow did not accept the launch of a job within `launch_timeout`."""


class Launch:
    """Launches the Dataflow job of one task attempt.

    :param request: the whole launch request, with the job's name and a label that contains the id of the wait.
    :param name: the job's name.
    :param keeps_name_since: if other tasks and attempts use the same job name, the time at which this task began to
        wait. `keeps_name_since` is None if only this attempt uses the job name.
    :param update: the request that replaces a running job with the same name, or None if no job may be replaced.
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
        keeps_name_since: float | None = None,
        update: dict[str, Any] | None = None,
        timings: LaunchTimings = DEFAULT_TIMINGS,
    ) -> None:
        self._keeps_name_since = keeps_name_since
        self._update = update
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

        :param check: an async function that is awaited before each request is sent. It raises an error if this process
            must not launch the job any more; see :meth:`deferrable_ops.inbox.waits.launches.Claim.check`.
        :param timeout: for how many seconds a launch is retried. If `timeout` is None, a launch is retried without a
            limit. But after an error that may be permanent, a launch without a `timeout` is retried for only
            ``errors_within`` seconds.
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
            job, others = await find_jobs(
                self._dataflow, self._name, self._wait_id, self._keeps_name_since, timings=self._timings
            )
            if job is not None:
                self._log.info(
                    "Continuing with the job %s (%s), which this task attempt has already launched",
                    job.name,
                    job.id,
                )
                return job
            try:
                request = self._request_beside(others)
                job = await self._dataflow.launch(self._kind, request, check)
            except LaunchUncertain as error:
                sent = True
                problem, may_be_permanent = str(error), error.code in _SERVER_ERRORS
            except DataflowLaunchRefused as refused:
                # An earlier launch may have created the job before this account lost its permission.
                if not sent or refused.code not in _NOT_PERMITTED:
                    raise
                problem, may_be_permanent = str(refused), True
            else:
                job = await self._require_own(job, {other.id for other in others})
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
                    f"Dataflow did not accept the launch within launch_timeout ({limit:g} s). The last error: {problem}"
                )
            self._log.warning("%s; retrying the launch in %.1f s, unless the job exists then", problem, pause)
            await asyncio.sleep(pause)

    def _request_beside(self, others: list[Job]) -> dict[str, Any]:
        """Return the request to send: the launch request, or the request that updates an active job with the same name.

        :param others: the other jobs that have the name of this task's job.

        :raises ForeignJob: if the task must not launch a job with this name.
        :raises LaunchUncertain: if the launch must wait until another job with this name has stopped or started.
        """
        if others and self._keeps_name_since is None:
            raise ForeignJob(
                f"the job {others[0].id} already has the name {self._name}, but this task attempt did not launch that "
                f"job (its label is not {WAIT_LABEL}={self._wait_id}); set another job_name= for this task"
            )
        active = next((job for job in others if not job.is_finished), None)
        if active is None:
            return self._request
        if active.state in _STOPPING:
            raise LaunchUncertain(f"the job {active.id} with the name {self._name} is still stopping")
        if self._update is None:
            raise ForeignJob(
                f"the job {active.id} with the name {self._name} is active, but this task attempt did not launch that "
                "job; set update=True to replace that job, or stop that job first"
            )
        if active.state in NOT_STARTED:
            raise LaunchUncertain(
                f"the job {active.id} with the name {self._name} cannot be updated yet, because this job does "
                "not run yet"
            )
        self._log.info("Updating the job %s (%s)", active.name, active.id)
        return self._update

    async def _require_own(self, job: Job, known: Collection[str]) -> Job:
        """Return the job that Dataflow returned for the launch request. Before that, check that this attempt has
        launched the job.

        Dataflow may return an active job with the same name instead of an error.

        :param known: the ids of jobs with this name that existed before the launch.
        :raises ForeignJob: if this attempt did not launch the job.
        """
        if job.labels.get(WAIT_LABEL) == self._wait_id:
            return job
        try:
            labelled = await self._dataflow.get(job.id)
        except DataflowRefused as refused:
            # A new job may be returned by the launch before it can be read.
            if refused.code != "NOT_FOUND" or job.id in known:
                raise
            return job
        label = labelled.labels.get(WAIT_LABEL)
        is_new = label is None and labelled.state in _LABELLED_LATE and job.id not in known
        if label == self._wait_id or is_new:
            return labelled
        raise ForeignJob(
            f"Dataflow answered the launch with the job {job.id}, which has the name {self._name}, but this task "
            f"attempt did not launch that job (its label is not {WAIT_LABEL}={self._wait_id}); set another job_name= "
            "for this task"
        )


async def find_jobs(
    dataflow: Dataflow,
    name: str,
    wait_id: str,
    since: float | None = None,
    *,
    timings: LaunchTimings = DEFAULT_TIMINGS,
) -> tuple[Job | None, list[Job]]:
    """Return the newest job with the given name and the label of the wait, and the other jobs with this name.

    The returned jobs may be finished. If no job belongs to the wait, return None and all jobs with the name.

    The API may return a job without its labels if the job does not run yet or has failed. If `since` is None, a job
    without labels is treated as a job of the wait, because the job's name contains a hash of the wait's id.

    :param since: the earliest time at which the job of the wait was created, in seconds since the epoch. `since` is
        None if only one attempt uses the name.
    """
    jobs = await dataflow.find(name)
    for job in jobs:
        if since is not None and _created_before(job, since - _CLOCK_DIFFERENCE):
            break
        labelled = await _with_labels(dataflow, job.id, timings, name_is_enough=since is None)
        is_unlabelled = WAIT_LABEL not in labelled.labels and labelled.state in _LABELLED_LATE
        if labelled.labels.get(WAIT_LABEL) == wait_id or (is_unlabelled and since is None):
            return labelled, [other for other in jobs if other.id != job.id]
    return None, jobs


async def find_launched(
    dataflow: Dataflow,
    name: str,
    wait: Wait,
    *,
    keeps_name: bool = False,
    timings: LaunchTimings = DEFAULT_TIMINGS,
) -> Job | None:
    """Return the job that the task attempt with this wait has launched or may have launched. Return None if no job was
    found.

    :param keeps_name: whether other attempts and tasks use the same job name.
    :raises DataflowUnavailable: if the job was launched, but Dataflow does not find the new job yet.
    """
    if wait.launch_answer is not None:
        return await _get_unless_gone(dataflow, wait, timings)
    for search in range(timings.searches):
        await asyncio.sleep(timings.search_every if search else 0)
        since = wait.created_at if keeps_name else None
        job, others = await find_jobs(dataflow, name, wait.id, since, timings=timings)
        if job is not None:
            return job
        if others and not keeps_name:
            return None
    return None


async def stop_job(
    dataflow: Dataflow, job: Job, how: Literal["cancel", "drain"], *, own_only: bool = False
) -> Job:
    """Request that Dataflow stops a job. If an update has replaced the job, stop the replacement instead.

    Do nothing if the job is already stopping or finished.

    :param own_only: if True, a replacement that another wait has launched is not stopped.
    :param how: how to stop the job: "cancel" or "drain". With "drain", a running streaming job is drained, and any
        other job is cancelled, because it cannot be drained.
    :return: the job as Dataflow returned it after the request.
    """
    own = job.labels.get(WAIT_LABEL)
    while job.replaced_by is not None:
        replacement = await dataflow.get(job.replaced_by)
        if own_only and replacement.labels.get(WAIT_LABEL, own) != own:
            return job
        job = replacement
    drainable = job.is_streaming and job.state not in NOT_STARTED
    how = "drain" if how == "drain" and drainable else "cancel"
    if job.is_finished or job.state == CANCELLING or (how == "drain" and job.state == DRAINING):
        return job
    return await dataflow.stop(job.id, how)


def _created_before(job: Job, time: float) -> bool:
    if job.created_at is None:
        return False
    # The first 19 characters are the time without the fraction of a second.
    return datetime.fromisoformat(f"{job.created_at[:19]}+00:00").timestamp() < time


async def get_unless_gone(
    dataflow: Dataflow, job_id: str, *, timings: LaunchTimings = DEFAULT_TIMINGS
) -> Job | None:
    """Return a job, or None if Dataflow has not found the job for ``timings.gone_after`` seconds.

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
        if reads >= FEWEST_READS and time.monotonic() >= deadline:
            return None
        await asyncio.sleep(timings.gone_every)


async def _get_unless_gone(dataflow: Dataflow, wait: Wait, timings: LaunchTimings) -> Job | None:
    # A cancellation is retried, so it does not wait for minutes.
    job_id = wait.launch_answer["job_id"]
    job = await get_unless_gone(dataflow, job_id, timings=replace(timings, gone_after=timings.search_every))
    if job is None and time.time() - (wait.settled_at or time.time()) < timings.gone_after:
        raise DataflowUnavailable(
            f"Dataflow does not find the job {job_id} yet, because the job may have been launched just now"
        )
    return job


async def _with_labels(
    dataflow: Dataflow, job_id: str, timings: LaunchTimings, *, name_is_enough: bool
) -> Job:
    # The API may return a new job late, and without its labels.
    deadline = time.monotonic() + timings.labels_within
    while True:
        is_over = time.monotonic() >= deadline
        try:
            job = await dataflow.get(job_id)
            # If the name is no proof, a job that runs without the label is another program's.
            is_enough = job.state in _LABELLED_LATE if name_is_enough else job.state not in NOT_STARTED
            if is_over or is_enough or WAIT_LABEL in job.labels or job.is_finished:
                return job
        except DataflowRefused as refused:
            if refused.code != "NOT_FOUND":
                raise
            if is_over:
                raise DataflowUnavailable(
                    f"Dataflow lists the job {job_id}, but does not return its details yet"
                ) from refused
        await asyncio.sleep(timings.labels_every)
