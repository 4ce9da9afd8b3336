"""The calls of Dataflow's API over one channel, each with a time limit and its errors translated. None is repeated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from deferrable_ops.exceptions import ConfigurationError, DataflowUnavailable, InputError
from deferrable_ops.upstreams.dataflow.credentials import SCOPES, load_credentials, whose
from deferrable_ops.upstreams.dataflow.errors import Call, errors_of
from deferrable_ops.upstreams.dataflow.jobs import NUMBER_OF_IMPORTANCE, JobMessage, message_from_api

if TYPE_CHECKING:
    from types import ModuleType

    import grpc.aio

    from deferrable_ops.upstreams.dataflow.client import Place

_HOST = "dataflow.googleapis.com"
_CALL_SECONDS = 20.0
_LAUNCH_SECONDS = 60.0
_CREDENTIALS_SECONDS = 120.0
_PAGE = 1_000  # Dataflow cuts a page to a limit of its own
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_retries", 0),  # a launch must not be repeated behind our back
    # A connection that a firewall forgot would swallow calls for 15 minutes.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 10_000),
)

_may_send_until: ContextVar[float | None] = ContextVar("deferrable_ops_may_send_until", default=None)


async def open_api(place: Place, emulator_host: str | None) -> Api:
    """Open the channel of a place. Everything that blocks happens in threads.

    :raises ConfigurationError: the extra, the google provider or the credentials are missing.
    :raises DataflowRefused: the credentials were refused.
    :raises DataflowUnavailable: they could not be loaded in time.
    """
    library = await asyncio.to_thread(_import_library)
    if emulator_host:
        return Api(place, library, _emulator_channel(emulator_host))
    loading = asyncio.to_thread(load_credentials, place.gcp_conn_id, place.impersonation_chain)
    try:
        credentials = await asyncio.wait_for(loading, _CREDENTIALS_SECONDS)
    except TimeoutError:
        owner = whose(place.gcp_conn_id, place.impersonation_chain)
        raise DataflowUnavailable(
            f"the credentials of {owner} could not be loaded within {_CREDENTIALS_SECONDS:g} s"
        ) from None
    return Api(place, library, _channel(library, credentials))


class Api:
    """Dataflow's API for one place. Jobs are the API's own messages."""

    def __init__(self, place: Place, library: ModuleType, channel: grpc.aio.Channel) -> None:
        self.place = place
        self._library = library
        self._channel = channel
        self._flex = _client(library.FlexTemplatesServiceAsyncClient, channel)
        self._classic = _client(library.TemplatesServiceAsyncClient, channel)
        self._jobs = _client(library.JobsV1Beta3AsyncClient, channel)
        self._messages = _client(library.MessagesV1Beta3AsyncClient, channel)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    def prepare_launch(
        self, kind: Literal["flex", "classic"], request: dict[str, Any]
    ) -> Callable[[float], Awaitable[Any]]:
        """Return the launch as a function of the ``time.monotonic()`` until which it may be sent.

        :raises InputError: the request is not one of the API's.
        """
        from google.protobuf.json_format import ParseDict, ParseError

        flex = kind == "flex"
        parsed = (self._library.LaunchFlexTemplateRequest if flex else self._library.LaunchTemplateRequest)()
        message = type(parsed).pb(parsed)
        try:
            ParseDict(request, message)
        except (ParseError, AttributeError, TypeError, ValueError) as error:  # it trusts in JSON's types
            raise InputError(f"body= is not a {type(parsed).__name__}: {error}") from None
        message.project_id = message.project_id or self.place.project_id
        message.location = message.location or self.place.region
        name = (message.launch_parameter if flex else message.launch_parameters).job_name
        send = self._flex.launch_flex_template if flex else self._classic.launch_template

        async def launch(until: float) -> Any:
            with errors_of(self._call(f"launch the job {name!r}", "dataflow.jobs.create")):
                before = _may_send_until.set(until)
                try:
                    answer = await send(parsed, timeout=_LAUNCH_SECONDS, retry=None)
                finally:
                    _may_send_until.reset(before)
            return type(answer).pb(answer).job

        return launch

    async def list_jobs(self, *, name: str | None = None) -> list[Any]:
        """Return the active jobs; with a name, every job of this name.

        :raises DataflowUnavailable: as always, or the list is not complete.
        """
        kinds = self._library.ListJobsRequest.Filter
        request = self._library.ListJobsRequest(
            project_id=self.place.project_id,
            location=self.place.region,
            filter=kinds.ALL if name else kinds.ACTIVE,
            page_size=_PAGE,
            **({"name": name} if name else {}),
        )
        jobs: list[Any] = []
        with errors_of(self._call("list the jobs", "dataflow.jobs.list")):
            pager = await self._jobs.list_jobs(request, timeout=_CALL_SECONDS, retry=None)
            async for page in pager.pages:
                answer = type(page).pb(page)
                if answer.failed_location:
                    raise DataflowUnavailable(f"Dataflow could not list every job of {self.place.region}")
                jobs.extend(answer.jobs)
        return jobs

    async def get_job(self, job_id: str) -> Any:
        """Return a job with its labels."""
        request = self._library.GetJobRequest(
            project_id=self.place.project_id,
            location=self.place.region,
            job_id=job_id,
            view=self._library.JobView.JOB_VIEW_DESCRIPTION,  # the summary lacks labels, JOB_VIEW_ALL has every step
        )
        with errors_of(self._call(f"read the job {job_id}", "dataflow.jobs.get")):
            job = await self._jobs.get_job(request, timeout=_CALL_SECONDS, retry=None)
        return type(job).pb(job)

    async def stop_job(self, job_id: str, how: Literal["cancel", "drain"]) -> Any:
        """Ask for a job to be cancelled or drained."""
        states = self._library.JobState
        wanted = states.JOB_STATE_CANCELLED if how == "cancel" else states.JOB_STATE_DRAINED
        request = self._library.UpdateJobRequest(
            project_id=self.place.project_id,
            location=self.place.region,
            job_id=job_id,
            job=self._library.Job(requested_state=wanted),
        )
        with errors_of(self._call(f"{how} the job {job_id}", f"dataflow.jobs.{how}")):
            job = await self._jobs.update_job(request, timeout=_CALL_SECONDS, retry=None)
        return type(job).pb(job)

    async def list_messages(self, job_id: str, least: str, since: str | None) -> list[JobMessage]:
        """Return a job's messages, the oldest first."""
        request = self._library.ListJobMessagesRequest(
            project_id=self.place.project_id,
            location=self.place.region,
            job_id=job_id,
            minimum_importance=NUMBER_OF_IMPORTANCE[least],
            page_size=_PAGE,
        )
        if since is not None:
            type(request).pb(request).start_time.FromJsonString(since)
        messages: list[JobMessage] = []
        with errors_of(self._call(f"list the messages of the job {job_id}", "dataflow.messages.list")):
            pager = await self._messages.list_job_messages(request, timeout=_CALL_SECONDS, retry=None)
            async for page in pager.pages:
                messages.extend(message_from_api(message) for message in type(page).pb(page).job_messages)
        return sorted(messages, key=lambda message: message.time)

    def _call(self, purpose: str, permission: str) -> Call:
        caller = whose(self.place.gcp_conn_id, self.place.impersonation_chain)
        return Call(purpose, permission, self.place.project_id, self.place.region, caller)


def _import_library() -> ModuleType:
    try:
        # The first of them is what is used; the others would be imported later, on the event loop.
        for name in (
            "google.cloud.dataflow_v1beta3",
            "google.api_core.grpc_helpers_async",
            "google.auth.transport.grpc",
            "google.auth.transport.requests",
            "google.protobuf.json_format",
        ):
            import_module(name)
    except ImportError as missing:
        raise ConfigurationError(
            f"Dataflow needs a client that is not installed here ({missing}): "
            'pip install "airflow-deferrable-ops[dataflow]"'
        ) from missing
    return import_module("google.cloud.dataflow_v1beta3")


def _emulator_channel(host: str) -> grpc.aio.Channel:
    import grpc.aio

    options = (*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0))  # it is near, and speaks in the clear
    return grpc.aio.insecure_channel(host, options=options, interceptors=[_fence()])


def _channel(library: ModuleType, credentials: Any) -> grpc.aio.Channel:
    transport = library.JobsV1Beta3AsyncClient.get_transport_class("grpc_asyncio")
    return transport.create_channel(
        f"{_HOST}:443",
        credentials=credentials,
        scopes=SCOPES,
        options=list(_CHANNEL_OPTIONS),
        interceptors=[_fence()],
    )


def _client(client: Any, channel: grpc.aio.Channel) -> Any:
    transport = client.get_transport_class("grpc_asyncio")
    return client(transport=transport(channel=channel))


def _fence() -> Any:
    """Make what gives a launch its deadline as late as possible: between this and the sending nothing is awaited."""
    import grpc.aio

    class Fence(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
        async def intercept_unary_unary(self, send: Any, details: Any, request: Any) -> Any:
            until = _may_send_until.get()
            if until is not None:
                left = until - time.monotonic()
                if left <= 0:
                    raise DataflowUnavailable("nothing was sent: the right to launch ran out before")
                details = details._replace(timeout=min(details.timeout, left))
            return await send(details, request)

    return Fence()
