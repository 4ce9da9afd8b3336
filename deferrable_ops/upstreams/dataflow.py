"""Dataflow: one client and one channel for all waits of a project, a region and its credentials."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from deferrable_ops.upstreams.dataflow_jobs import Job, JobMessage, MessageCursor, MessagesWanted, Update

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
    raise NotImplementedError


class Dataflow:
    """A client for one place."""

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
        raise NotImplementedError

    async def find(self, name: str) -> list[Job]:
        """Return every job of exactly this name, finished ones too, the newest first. They lack their labels."""
        raise NotImplementedError

    async def active(self) -> list[Job]:
        """Return every job that Dataflow counts as active. They lack their labels."""
        raise NotImplementedError

    async def get(self, job_id: str) -> Job:
        """Return a job with its labels."""
        raise NotImplementedError

    async def stop(self, job_id: str, how: Literal["cancel", "drain"]) -> Job:
        """Ask for a job to be cancelled or drained, and do not wait for it. A finished job is returned as it is."""
        raise NotImplementedError

    async def messages(
        self, job_id: str, *, least: str = "ERROR", since: str | None = None
    ) -> list[JobMessage]:
        """Return a job's messages, the oldest first.

        :param least: the least importance: DEBUG, DETAILED, BASIC, WARNING or ERROR.
        :param since: RFC 3339; the earliest time.
        """
        raise NotImplementedError

    def watch(
        self, job_id: str, *, interval: float, messages: MessagesWanted | None = None
    ) -> AbstractContextManager[Watch]:
        """Watch a job for as long as the block lasts.

        :param interval: seconds between two looks; the smallest of all watches of this place counts.
        :param messages: which messages to read along; None reads none.
        """
        raise NotImplementedError
