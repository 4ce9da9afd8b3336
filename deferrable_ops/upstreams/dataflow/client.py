"""The Dataflow client. All tasks that wait for jobs with the same project, region and credentials share one client,
channel and poller.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Literal, TypeVar

from deferrable_ops import settings
from deferrable_ops.backoff import Backoff
from deferrable_ops.exceptions import (
    DataflowLaunchRefused,
    DataflowRefused,
    DataflowUnavailable,
    LaunchUncertain,
)
from deferrable_ops.outages import outages
from deferrable_ops.shared import share
from deferrable_ops.upstreams.dataflow.api import Api, open_api
from deferrable_ops.upstreams.dataflow.job_watch import JobWatch
from deferrable_ops.upstreams.dataflow.jobs import (
    DataflowTarget,
    Job,
    JobMessage,
    MessageCursor,
    MessagesWanted,
    ReadProblem,
    Update,
    job_from_api,
)
from deferrable_ops.upstreams.dataflow.poller import Poller

__all__ = [
    "Dataflow",
    "DataflowTarget",
    "Job",
    "JobMessage",
    "JobWatch",
    "MessageCursor",
    "MessagesWanted",
    "ReadProblem",
    "Update",
    "use_dataflow",
]

T = TypeVar("T")

log = logging.getLogger(__name__)

_MAX_CONCURRENT_LAUNCHES = 10
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
_OUTAGE_SECONDS = 180.0


def use_dataflow(target: DataflowTarget) -> AbstractAsyncContextManager[Dataflow]:
    """Return a context manager for the Dataflow client that all callers on the running event loop share.

    :raises ConfigurationError: if the extra ``dataflow`` or the Google credentials are missing, or ``gcp_conn_id`` is
        set and the google provider is missing.
    :raises MissingCredentials: if the machine has no Google credentials, or its metadata server does not answer.
    :raises DataflowRefused: if Google refused the credentials.
    :raises DataflowUnavailable: if Google issued no token for another reason.
    """
    emulator_host = settings.dataflow_emulator_host()

    async def open_dataflow() -> Dataflow:
        return Dataflow(await open_api(target, emulator_host))

    return share(("dataflow", target, emulator_host), open_dataflow, Dataflow.close)


class Dataflow:
    """A Dataflow client for one project and region.

    While Dataflow is unavailable, read calls are retried without a limit.

    :param first_pause: the upper limit of the random pause before the first retry, in seconds. Each further failure
        doubles this limit, up to 30 s.
    """

    def __init__(self, api: Api, *, first_pause: float = _FIRST_PAUSE) -> None:
        self._api = api
        self._first_pause = first_pause
        self._launching = asyncio.Semaphore(_MAX_CONCURRENT_LAUNCHES)
        self._poller = Poller(api, api.target)

    @property
    def project_id(self) -> str:
        """The project of the jobs."""
        return self._api.project_id

    async def close(self) -> None:
        """Stop polling and close the channel."""
        self._poller.close()
        await self._api.close()

    async def launch(
        self,
        kind: Literal["flex", "classic"],
        request: dict[str, Any],
        before_send: Callable[[], Awaitable[float]],
    ) -> Job:
        """Send one launch request, without retries.

        :param request: the complete LaunchFlexTemplateRequest or LaunchTemplateRequest, in camelCase or snake_case.
        :param before_send: a function that is awaited just before the request is sent. The function returns the time
            by ``time.monotonic()`` after which this process must not send the request any more. If the function raises
            an error, the request is not sent.
        :raises InputError: if the launch request has an unknown field, or a value of the wrong type.
        :raises DataflowLaunchRefused: if Dataflow created no job, and would also refuse a retry.
        :raises LaunchUncertain: if it is unknown whether Dataflow created a job.
        """
        send = self._api.prepare_launch(kind, request)
        async with self._launching:
            until = await before_send()
            try:
                return self._job(await send(until))
            except DataflowUnavailable as error:
                raise LaunchUncertain(str(error), code=error.code) from error
            except DataflowRefused as refused:
                if refused.code != "ALREADY_EXISTS":
                    raise DataflowLaunchRefused(str(refused), refused.code) from refused
                raise LaunchUncertain(str(refused), already_exists=True) from refused

    async def find(self, name: str) -> list[Job]:
        """Return all jobs with exactly this name, including finished jobs, newest first.

        The returned jobs have no labels.
        """
        found = await self._with_retries(lambda: self._api.list_jobs(name=name))
        jobs = [self._job(message) for message in found if message.name == name]
        return sorted(jobs, key=lambda job: (job.created_at or "", job.id), reverse=True)

    async def unfinished(self) -> list[Job]:
        """Return all jobs that are not in a final state, including jobs that have not started.

        The returned jobs have no labels.
        """
        # The API's list of active jobs may omit jobs that do not run, such as queued or paused jobs.
        listed = await self._with_retries(lambda: self._api.list_jobs(finished=True))
        return [job for job in map(self._job, listed) if not job.is_finished]

    async def get(self, job_id: str) -> Job:
        """Return a job including its labels."""
        return self._job(await self._with_retries(lambda: self._api.get_job(job_id)))

    async def stop(self, job_id: str, how: Literal["cancel", "drain"]) -> Job:
        """Request to cancel or to drain a job, and return without waiting for its end.

        A finished job is not changed.
        """
        try:
            return self._job(await self._with_retries(lambda: self._api.stop_job(job_id, how)))
        except DataflowRefused:
            # A finished job cannot be stopped; that is not an error.
            job = await self.get(job_id)
            if job.is_finished:
                return job
            raise

    async def messages(
        self, job_id: str, *, least: str = "ERROR", since: str | None = None
    ) -> list[JobMessage]:
        """Return a job's newest messages, at most `MAX_MESSAGES`, the oldest first.

        :param least: the lowest importance of the messages to return. One of DEBUG, DETAILED, BASIC, WARNING and ERROR.
        :param since: the time of the earliest message to return, as RFC 3339.
        """
        found = await self._with_retries(lambda: self._api.list_messages(job_id, least, since))
        return list(found.messages)

    async def metrics(self, job_id: str) -> list[dict[str, Any]]:
        """Return a job's metrics, in the API's JSON format."""
        return await self._with_retries(lambda: self._api.job_metrics(job_id))

    def watch(
        self, job_id: str, *, interval: float, messages: MessagesWanted | None = None
    ) -> AbstractContextManager[JobWatch]:
        """Watch a Dataflow job during a ``with`` block.

        :param interval: seconds between two polls. All watched jobs of a project and region are polled together, at the
            smallest interval.
        :param messages: which of the job's messages to read. If `messages` is None, no messages are read.
        """
        return self._poller.watch(job_id, interval, messages)

    async def _with_retries(self, call: Callable[[], Awaitable[T]]) -> T:
        """Retry a call while Dataflow is unavailable. The number of retries has no limit, so callers must set a
        timeout.
        """
        backoff = Backoff(first_pause=self._first_pause, longest_pause=_LONGEST_PAUSE)
        while True:
            try:
                result = await call()
            except DataflowUnavailable as error:
                pause = backoff.failed()
                # In the log of the task that makes the call. Later lines come from the outage.
                if backoff.failures == 1:
                    log.warning("%s; retrying in %.1f s", error, pause)
                outages.failed(self._api.target.source, str(error), lasts=_OUTAGE_SECONDS)
            else:
                # Without own failures, another call may still fail: the list of jobs, for example.
                if backoff.failures:
                    outages.recovered(self._api.target.source)
                return result
            await asyncio.sleep(pause)

    def _job(self, message: Any) -> Job:
        return job_from_api(message, self.project_id, self._api.target.region)
