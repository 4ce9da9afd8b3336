"""Dataflow: one client, one channel and one poller for all waits of a project, a region and its credentials."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from deferrable_ops import settings
from deferrable_ops.exceptions import DataflowRefused, DataflowUnavailable, LaunchUncertain
from deferrable_ops.shared import share
from deferrable_ops.upstreams.dataflow.api import Api, open_api
from deferrable_ops.upstreams.dataflow.jobs import (
    Job,
    JobMessage,
    MessageCursor,
    MessagesWanted,
    Update,
    job_from_api,
)
from deferrable_ops.upstreams.dataflow.poller import Poller

__all__ = [
    "Dataflow",
    "Job",
    "JobMessage",
    "MessageCursor",
    "MessagesWanted",
    "Place",
    "Update",
    "Watch",
    "use_dataflow",
]

T = TypeVar("T")

log = logging.getLogger(__name__)

_LAUNCHES_AT_ONCE = 10
_PAUSE_FIRST, _PAUSE_MOST = 1.0, 30.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where jobs run, and as whom they are launched: what shares one client, one channel and one poller.

    :param gcp_conn_id: an Airflow connection; None takes the application default credentials.
    :param impersonation_chain: service accounts, the last of them the one to act as.
    """

    project_id: str
    region: str
    gcp_conn_id: str | None = None
    impersonation_chain: tuple[str, ...] = ()


class Watch(Protocol):
    """A job that is being watched."""

    async def next(self) -> Update:
        """Return what is new, once there is something: the job's state at once, then whatever changes.

        :raises DataflowRefused: the job, or the list of jobs, cannot be read.
        """
        ...


def use_dataflow(place: Place) -> AbstractAsyncContextManager[Dataflow]:
    """Use the client of this place on the running event loop.

    :raises ConfigurationError: the extra ``dataflow``, or the google provider for a ``gcp_conn_id``, is missing; or
        there are no credentials.
    :raises DataflowRefused: the credentials were refused.
    """
    emulator_host = settings.dataflow_emulator_host()

    async def open_dataflow() -> Dataflow:
        return Dataflow(await open_api(place, emulator_host))

    return share(("dataflow", place, emulator_host), open_dataflow, Dataflow.close)


class Dataflow:
    """A client for one place."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._launching = asyncio.Semaphore(_LAUNCHES_AT_ONCE)
        self._poller = Poller(api, api.place.project_id, api.place.region)

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
        """Launch a job: ask once, and never again by itself.

        :param request: the whole LaunchFlexTemplateRequest or LaunchTemplateRequest, in camelCase or snake_case.
        :param before_send: awaited immediately before the request is sent; returns the ``time.monotonic()`` until
            which this process may send it, or raises to forbid it.
        :raises InputError: the request has an unknown field, or a value of another type than the API's.
        :raises DataflowRefused: no job was created, and none will be.
        :raises LaunchUncertain: a job may have been created.
        """
        send = self._api.prepare_launch(kind, request)
        async with self._launching:
            until = await before_send()
            try:
                return self._job(await send(until))
            except DataflowUnavailable as error:
                raise LaunchUncertain(str(error)) from error
            except DataflowRefused as refused:
                if refused.code != "ALREADY_EXISTS":
                    raise
                raise LaunchUncertain(str(refused), already_exists=True) from refused

    async def find(self, name: str) -> list[Job]:
        """Return every job of exactly this name, finished ones too, the newest first. They lack their labels."""
        found = await self._patiently(lambda: self._api.list_jobs(name=name))
        jobs = [self._job(message) for message in found if message.name == name]
        return sorted(jobs, key=lambda job: (job.created_at or "", job.id), reverse=True)

    async def active(self) -> list[Job]:
        """Return every job that Dataflow counts as active. They lack their labels."""
        return [self._job(message) for message in await self._patiently(self._api.list_jobs)]

    async def get(self, job_id: str) -> Job:
        """Return a job with its labels."""
        return self._job(await self._patiently(lambda: self._api.get_job(job_id)))

    async def stop(self, job_id: str, how: Literal["cancel", "drain"]) -> Job:
        """Ask for a job to be cancelled or drained, and do not wait for it. A finished job is returned as it is."""
        try:
            return self._job(await self._patiently(lambda: self._api.stop_job(job_id, how)))
        except DataflowRefused:
            # It may have been refused because there is nothing left to stop.
            job = await self.get(job_id)
            if job.is_finished:
                return job
            raise

    async def messages(
        self, job_id: str, *, least: str = "ERROR", since: str | None = None
    ) -> list[JobMessage]:
        """Return a job's messages, the oldest first.

        :param least: the least importance: DEBUG, DETAILED, BASIC, WARNING or ERROR.
        :param since: RFC 3339; the earliest time.
        """
        return await self._patiently(lambda: self._api.list_messages(job_id, least, since))

    def watch(
        self, job_id: str, *, interval: float, messages: MessagesWanted | None = None
    ) -> AbstractContextManager[Watch]:
        """Watch a job for as long as the block lasts.

        :param interval: seconds between two looks; the smallest of all watches of this place counts.
        :param messages: which messages to read along; None reads none.
        """
        return self._poller.watch(job_id, interval, messages)

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until there is an answer. How long that may take is for the caller to say."""
        pause = _PAUSE_FIRST
        while True:
            try:
                return await ask()
            except DataflowUnavailable as error:
                wait = pause * random.uniform(0.5, 1.0)  # noqa: S311
                log.warning("%s; asking again in %.1f s", error, wait)
            await asyncio.sleep(wait)
            pause = min(2 * pause, _PAUSE_MOST)

    def _job(self, message: Any) -> Job:
        return job_from_api(message, self._api.place.project_id, self._api.place.region)
