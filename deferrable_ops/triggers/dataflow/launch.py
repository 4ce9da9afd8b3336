"""Launching a job once: look for it by its name, adopt it when it is ours, and only then ask for it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

from deferrable_ops.exceptions import DataflowError, DataflowRefused, LaunchUncertain
from deferrable_ops.inbox import Wait
from deferrable_ops.triggers.dataflow.request import WAIT_LABEL, Kind
from deferrable_ops.triggers.dataflow.states import NOT_STARTED
from deferrable_ops.upstreams.dataflow.client import Dataflow, Job
from deferrable_ops.upstreams.dataflow.jobs import CANCELLING, DRAINING

_PAUSE_FIRST, _PAUSE_MOST = 1.0, 30.0
_LABELS_WITHIN: Final = 30.0  # seconds after which a job that waits to be started should show its labels
_LABELS_EVERY = 2.0

# How often a job is looked for whose launch was asked for and never answered: Dataflow may be about to make it.
_LOOKS: Final = 3
_LOOK_EVERY = 5.0


class ForeignJob(DataflowError):
    """A job has the name of this wait's, and was launched by somebody else."""


class NotAccepted(DataflowError):
    """Dataflow took no launch within `launch_timeout`."""


class Launch:
    """The launch of one wait's job.

    :param request: the whole launch request, with the job's name and label in it.
    :param name: the job's name.
    """

    def __init__(
        self, dataflow: Dataflow, kind: Kind, request: dict[str, Any], name: str, wait_id: str, log: Any
    ) -> None:
        self._dataflow = dataflow
        self._kind = kind
        self._request = request
        self._name = name
        self._wait_id = wait_id
        self._log = log

    async def until_accepted(self, check: Callable[[], Awaitable[float]], timeout: float | None) -> Job:
        """Return this wait's job: the one that exists already, or one that is launched now.

        :param check: awaited before each request is sent: see :meth:`deferrable_ops.inbox.waits.launches.Claim.check`.
        :param timeout: seconds after which it is given up; None: never.
        :raises DataflowRefused: Dataflow refused the launch, and would again.
        :raises ForeignJob: somebody else's job has the name.
        :raises NotAccepted: Dataflow did not take it in time.
        """
        give_up_at = float("inf") if timeout is None else time.monotonic() + timeout
        pause = _PAUSE_FIRST
        while True:
            job = await find_own(self._dataflow, self._name, self._wait_id)
            if job is not None:
                self._log.info("The job %s (%s) was launched before: it is adopted", job.name, job.id)
                return job
            try:
                job = await self._dataflow.launch(self._kind, self._request, check)
            except LaunchUncertain as error:
                problem = str(error)
            else:
                self._log.info("Launched the job %s (%s)", job.name, job.id)
                return job
            wait = pause * random.uniform(0.5, 1.0)  # noqa: S311
            if time.monotonic() + wait > give_up_at:
                raise NotAccepted(f"Dataflow took no launch within launch_timeout ({timeout:g} s): {problem}")
            self._log.warning("%s; looking for the job again in %.1f s", problem, wait)
            await asyncio.sleep(wait)
            pause = min(2 * pause, _PAUSE_MOST)


async def find_own(dataflow: Dataflow, name: str, wait_id: str) -> Job | None:
    """Return the newest job of this name that a wait has launched, a finished one too; None when there is no job.

    :raises ForeignJob: there are jobs of this name, and none is the wait's.
    """
    jobs = await dataflow.find(name)
    for job in jobs:
        labelled = await _with_labels(dataflow, job.id)
        if labelled.labels.get(WAIT_LABEL) == wait_id:
            return labelled
    if jobs:
        raise ForeignJob(
            f"the job {jobs[0].id} has the name {name} and lacks this attempt's label {WAIT_LABEL}={wait_id}: "
            "somebody else launched it. Give this task another job_name="
        )
    return None


async def find_launched(dataflow: Dataflow, name: str, wait: Wait) -> Job | None:
    """Return the job that a wait has launched, or may have; None where there is none."""
    if wait.launch_answer is not None:
        try:
            return await dataflow.get(wait.launch_answer["job_id"])
        except DataflowRefused as refused:
            if refused.code == "NOT_FOUND":  # Dataflow has forgotten it
                return None
            raise
    for look in range(_LOOKS):
        await asyncio.sleep(_LOOK_EVERY if look else 0)
        try:
            job = await find_own(dataflow, name, wait.id)
        except ForeignJob:
            return None
        if job is not None:
            return job
    return None


async def stop_job(dataflow: Dataflow, job: Job, how: Literal["cancel", "drain"]) -> Job:
    """Ask for a job to be stopped, or for what replaced it, unless that was asked for or it has ended.

    :param how: "drain" holds for a streaming job that runs: any other is cancelled, because it cannot be drained.
    :return: the job as it stands, with its labels where the API tells them.
    """
    while job.replaced_by is not None:
        job = await dataflow.get(job.replaced_by)
    drainable = job.is_streaming and job.state not in NOT_STARTED
    how = "drain" if how == "drain" and drainable else "cancel"
    if job.is_finished or job.state == CANCELLING or (how == "drain" and job.state == DRAINING):
        return job
    return await dataflow.stop(job.id, how)


async def _with_labels(dataflow: Dataflow, job_id: str) -> Job:
    # A job that still waits to be started may not show its labels yet; one with the label of another is another's.
    look_until = time.monotonic() + _LABELS_WITHIN
    job = await dataflow.get(job_id)
    while WAIT_LABEL not in job.labels and job.state in NOT_STARTED and time.monotonic() < look_until:
        await asyncio.sleep(_LABELS_EVERY)
        job = await dataflow.get(job_id)
    return job
