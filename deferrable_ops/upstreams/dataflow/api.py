"""Calls Dataflow's API over one gRPC channel.

Each API call has a timeout. An API call is not retried, except a request for the second or a later page of a list.
Errors are converted into exceptions of this library.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from deferrable_ops import settings
from deferrable_ops.backoff import Backoff
from deferrable_ops.exceptions import AirflowUnavailable, ConfigurationError, DataflowUnavailable
from deferrable_ops.upstreams.connection_extra import read_connection
from deferrable_ops.upstreams.dataflow.credentials import (
    SCOPES,
    LoadedCredentials,
    describe_account,
    load_credentials,
)
from deferrable_ops.upstreams.dataflow.errors import ApiCall, translate_errors
from deferrable_ops.upstreams.dataflow.jobs import (
    MAX_MESSAGES,
    NUMBER_OF_IMPORTANCE,
    DataflowTarget,
    JobMessage,
    MessageList,
    message_from_api,
)
from deferrable_ops.upstreams.dataflow.launch_request import parse_launch_request

if TYPE_CHECKING:
    from types import ModuleType

    import grpc.aio


_REGION = re.compile(r"[a-z]+-[a-z]+[0-9]+")
_CALL_TIMEOUT = 20.0
_LAUNCH_TIMEOUT = 60.0
_CREDENTIALS_TIMEOUT = 120.0
# Dataflow may return fewer entries per page, because it has its own limit.
_PAGE_SIZE = 1_000
# How often a page is requested before the whole list counts as failed. The first page is requested once.
_PAGE_ATTEMPTS = 3
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    # gRPC must not retry a launch.
    ("grpc.enable_retries", 0),
    # Without keepalives, a connection that a firewall has dropped would block calls for 15 minutes.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 10_000),
)

log = logging.getLogger(__name__)

_send_deadline: ContextVar[float | None] = ContextVar("deferrable_ops_send_deadline", default=None)


async def open_api(target: DataflowTarget, emulator_host: str | None) -> Api:
    """Open the gRPC channel for a project and region.

    Python modules and credentials are loaded in threads, because loading blocks.

    :raises ConfigurationError: if a Python package, the credentials or the project are missing.
    :raises MissingCredentials: if the machine has no Google credentials, or its metadata server does not answer.
    :raises DataflowRefused: if Google refused the credentials.
    :raises DataflowUnavailable: if Google issued no token for another reason.
    """
    library = await asyncio.to_thread(_import_library)
    if emulator_host:
        project_id = await _project_with_emulator(target)
        return Api(target, project_id, library, _emulator_channel(emulator_host))
    loading = asyncio.to_thread(load_credentials, target.gcp_conn_id, target.impersonation_chain)
    try:
        loaded = await asyncio.wait_for(loading, _CREDENTIALS_TIMEOUT)
    except TimeoutError:
        account = describe_account(target.gcp_conn_id, target.impersonation_chain)
        raise DataflowUnavailable(
            f"the credentials of {account} could not be loaded within {_CREDENTIALS_TIMEOUT:g} s"
        ) from None
    project_id = target.project_id or loaded.project_id or ""
    if not project_id:
        account = describe_account(target.gcp_conn_id, target.impersonation_chain)
        raise ConfigurationError(f"{account} has no default project; set project_id=")
    return Api(target, project_id, library, _channel(library, loaded))


class Api:
    """Dataflow's API for one project and region. The methods return jobs as protobuf messages of the API.

    :param project_id: the project of `target`, or of the credentials if `target` has no project.
    """

    def __init__(
        self, target: DataflowTarget, project_id: str, library: ModuleType, channel: grpc.aio.Channel
    ) -> None:
        self.target = target
        self.project_id = project_id
        self._library = library
        self._channel = channel
        self._flex = _client(library.FlexTemplatesServiceAsyncClient, channel)
        self._classic = _client(library.TemplatesServiceAsyncClient, channel)
        self._jobs = _client(library.JobsV1Beta3AsyncClient, channel)
        self._messages = _client(library.MessagesV1Beta3AsyncClient, channel)
        self._metrics = _client(library.MetricsV1Beta3AsyncClient, channel)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    def prepare_launch(
        self, kind: Literal["flex", "classic"], request: dict[str, Any]
    ) -> Callable[[float], Awaitable[Any]]:
        """Return a function that sends the launch request.

        :return: the function. The function's argument is the time by ``time.monotonic()`` after which the request is
            not sent any more.
        :raises InputError: if the launch request has an unknown field, or a value of the wrong type.
        """
        flex = kind == "flex"
        parsed = parse_launch_request(self._library, kind, request)
        message = type(parsed).pb(parsed)
        message.project_id = message.project_id or self.project_id
        message.location = message.location or self.target.region
        name = (message.launch_parameter if flex else message.launch_parameters).job_name
        send = self._flex.launch_flex_template if flex else self._classic.launch_template

        async def launch(until: float) -> Any:
            with translate_errors(self._call(f"launch the job {name!r}", "dataflow.jobs.create")):
                token = _send_deadline.set(until)
                try:
                    answer = await send(parsed, timeout=_LAUNCH_TIMEOUT, retry=None)
                finally:
                    _send_deadline.reset(token)
            return type(answer).pb(answer).job

        return launch

    async def list_jobs(self, *, name: str | None = None, finished: bool = False) -> list[Any]:
        """Return the active jobs of the region. If `name` is given, return the active and finished jobs with this name
        instead.

        :param finished: if True, return all jobs of the region.

        :raises DataflowUnavailable: if the API call failed, or the list of jobs is incomplete.
        """
        kinds = self._library.ListJobsRequest.Filter
        request = self._library.ListJobsRequest(
            project_id=self.project_id,
            location=self.target.region,
            filter=kinds.ALL if name or finished else kinds.ACTIVE,
            page_size=_PAGE_SIZE,
            **({"name": name} if name else {}),
        )
        jobs: list[Any] = []
        call = self._call("list the jobs", "dataflow.jobs.list")
        async for page in _pages(self._jobs.list_jobs, request, call):
            if page.failed_location:
                raise DataflowUnavailable(f"Dataflow could not list all jobs of {self.target.region}")
            jobs.extend(page.jobs)
        return jobs

    async def get_job(self, job_id: str) -> Any:
        """Return a job including its labels."""
        request = self._library.GetJobRequest(
            project_id=self.project_id,
            location=self.target.region,
            job_id=job_id,
            # This view has the labels. The summary has no labels, and JOB_VIEW_ALL also has every step of the job.
            view=self._library.JobView.JOB_VIEW_DESCRIPTION,
        )
        with translate_errors(self._call(f"read the job {job_id}", "dataflow.jobs.get")):
            job = await self._jobs.get_job(request, timeout=_CALL_TIMEOUT, retry=None)
        return type(job).pb(job)

    async def stop_job(self, job_id: str, how: Literal["cancel", "drain"]) -> Any:
        """Request to cancel or to drain a job."""
        states = self._library.JobState
        wanted = states.JOB_STATE_CANCELLED if how == "cancel" else states.JOB_STATE_DRAINED
        request = self._library.UpdateJobRequest(
            project_id=self.project_id,
            location=self.target.region,
            job_id=job_id,
            job=self._library.Job(requested_state=wanted),
        )
        permission = "dataflow.jobs.cancel" if how == "cancel" else "dataflow.jobs.updateContents"
        with translate_errors(self._call(f"{how} the job {job_id}", permission)):
            job = await self._jobs.update_job(request, timeout=_CALL_TIMEOUT, retry=None)
        return type(job).pb(job)

    async def list_messages(self, job_id: str, least: str, since: str | None) -> MessageList:
        """Return a job's newest messages, and how many older messages were left out."""
        request = self._library.ListJobMessagesRequest(
            project_id=self.project_id,
            location=self.target.region,
            job_id=job_id,
            minimum_importance=NUMBER_OF_IMPORTANCE[least],
            page_size=_PAGE_SIZE,
        )
        if since is not None:
            type(request).pb(request).start_time.FromJsonString(since)
        newest: list[JobMessage] = []
        count = 0
        call = self._call(f"list the messages of the job {job_id}", "dataflow.messages.list")
        async for page in _pages(self._messages.list_job_messages, request, call):
            count += len(page.job_messages)
            newest.extend(message_from_api(message) for message in page.job_messages)
            newest = sorted(newest, key=lambda message: message.time)[-MAX_MESSAGES:]
        return MessageList(tuple(newest), count - len(newest))

    async def job_metrics(self, job_id: str) -> list[dict[str, Any]]:
        """Return a job's metrics, in the API's JSON format."""
        from google.protobuf.json_format import MessageToDict

        request = self._library.GetJobMetricsRequest(
            project_id=self.project_id, location=self.target.region, job_id=job_id
        )
        with translate_errors(self._call(f"read the metrics of the job {job_id}", "dataflow.metrics.get")):
            answer = await self._metrics.get_job_metrics(request, timeout=_CALL_TIMEOUT, retry=None)
        return [MessageToDict(metric) for metric in type(answer).pb(answer).metrics]

    def _call(self, purpose: str, permission: str) -> ApiCall:
        caller = describe_account(self.target.gcp_conn_id, self.target.impersonation_chain)
        return ApiCall(purpose, permission, self.project_id, self.target.region, caller)


async def _pages(method: Any, request: Any, call: ApiCall) -> AsyncIterator[Any]:
    """Yield the pages of a list, as protobuf messages.

    If Dataflow is unavailable when a further page is requested, the page is requested again. Without this retry, one
    failed page of many would discard the whole list.
    """
    backoff = Backoff()
    while True:
        try:
            with translate_errors(call):
                pager = await method(request, timeout=_CALL_TIMEOUT, retry=None)
        except DataflowUnavailable:
            pause = backoff.failed()
            if not request.page_token or backoff.failures >= _PAGE_ATTEMPTS:
                raise
            await asyncio.sleep(pause)
            continue
        backoff.succeeded()
        # The pager's first page is the response that it already has.
        page = await anext(pager.pages)
        yield type(page).pb(page)
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _import_library() -> ModuleType:
    try:
        # Only the first module is used here. The other modules are imported in this thread too. Otherwise the event
        # loop would import them later.
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
            f"the Dataflow client is not installed here ({missing}); run "
            'pip install "airflow-deferrable-ops[dataflow]"'
        ) from missing
    return import_module("google.cloud.dataflow_v1beta3")


def _emulator_channel(host: str) -> grpc.aio.Channel:
    import grpc.aio

    # An emulator runs on the same or a near machine, without a proxy and without TLS.
    options = (*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0))
    return grpc.aio.insecure_channel(host, options=options, interceptors=[_deadline_check()])


async def _project_with_emulator(target: DataflowTarget) -> str:
    """Return the project for an emulator of Dataflow. Log a warning if the real Dataflow would not accept the region or
    connection.
    """
    extra = None
    if not _REGION.fullmatch(target.region):
        log.warning(
            "region=%r is not a region of Google Cloud, so only the emulator accepts it. A region of Google Cloud is, "
            "for example, us-central1",
            target.region,
        )
    if target.gcp_conn_id is not None:
        try:
            _, extra = await read_connection(target.gcp_conn_id)
        except ConfigurationError as error:
            log.warning("gcp_conn_id=%r would fail without the emulator: %s", target.gcp_conn_id, error)
        except AirflowUnavailable:
            # Airflow did not answer, so it is unknown whether the connection exists.
            pass
    return target.project_id or (extra or {}).get("project") or "emulator"


def _channel(library: ModuleType, loaded: LoadedCredentials) -> grpc.aio.Channel:
    transport = library.JobsV1Beta3AsyncClient.get_transport_class("grpc_asyncio")
    endpoint = settings.dataflow_api_endpoint() or f"dataflow.{loaded.universe_domain}"
    return transport.create_channel(
        endpoint if ":" in endpoint else f"{endpoint}:443",
        credentials=loaded.credentials,
        scopes=SCOPES,
        options=list(_CHANNEL_OPTIONS),
        interceptors=[_deadline_check()],
    )


def _client(client: Any, channel: grpc.aio.Channel) -> Any:
    transport = client.get_transport_class("grpc_asyncio")
    return client(transport=transport(channel=channel))


def _deadline_check() -> Any:
    """Return a gRPC interceptor that checks the deadline of a launch immediately before the request is sent."""
    import grpc.aio

    class DeadlineCheck(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
        async def intercept_unary_unary(self, send: Any, details: Any, request: Any) -> Any:
            until = _send_deadline.get()
            if until is not None:
                left = until - time.monotonic()
                if left <= 0:
                    raise DataflowUnavailable(
                        "the launch request was not sent, because the time in which this process may launch the job is "
                        "over"
                    )
                details = details._replace(timeout=min(details.timeout, left))
            return await send(details, request)

    return DeadlineCheck()
