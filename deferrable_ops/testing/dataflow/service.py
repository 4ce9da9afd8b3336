"""Implements the methods of Dataflow's API for the jobs of the fake Dataflow.

The behaviour follows these pages of Google's documentation, at cloud.google.com/dataflow/docs/reference/rest/v1b3:

- "REST Resource: projects.locations.jobs": the fields, the states and the labels of a job.
- "Method: projects.locations.jobs.list": a list has summaries without labels. The filter ACTIVE returns running jobs,
  ordered on the creation timestamp; ALL returns the running jobs first, and then the terminated jobs, ordered on the
  termination timestamp. A page has at most `pageSize` jobs, or fewer because of "an unspecified server-defined limit".
- "ListJobsResponse": `nextPageToken` is set "if there may be more results than fit in this response", and
  `failedLocation` contains the regions "that failed to respond".
- "Method: projects.locations.jobs.get" and "JobView": JOB_VIEW_SUMMARY has no labels; JOB_VIEW_DESCRIPTION has labels.
- "Method: projects.locations.jobs.update": `requestedState` may be JOB_STATE_CANCELLED or JOB_STATE_DRAINED.
- "Method: projects.locations.jobs.messages.list": `minimumImportance`, `startTime`, `endTime`, and pages.
- "Method: projects.locations.flexTemplates.launch" and "Method: projects.locations.templates.launch": the response
  contains the job.

Google's pages state no delays, such as the time until a new job is found, and no error messages. docs/dataflow.md lists
what is "assumed, not proven".
"""

from __future__ import annotations

import re
from typing import Any, Literal, Protocol

import grpc
from google.cloud import dataflow_v1beta3 as api
from google.protobuf.json_format import MessageToDict

from deferrable_ops.testing.dataflow.jobs import NOT_ACTIVE, FakeJob
from deferrable_ops.testing.dataflow.trouble import Trouble
from deferrable_ops.upstreams.dataflow.jobs import IMPORTANCES, NUMBER_OF_IMPORTANCE, QUEUED, RUNNING

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
_SUMMARY_VIEWS = {api.JobView.JOB_VIEW_UNKNOWN, api.JobView.JOB_VIEW_SUMMARY}
_LEAST_OF_NUMBER = {number: IMPORTANCES.index(name) for name, number in NUMBER_OF_IMPORTANCE.items()}


class JobStore(Protocol):
    """The jobs and settings that the service uses; see :class:`FakeDataflow`."""

    trouble: Trouble
    second_launch: Literal["refuse", "return"]
    get_lag: float
    label_lag: float
    page_limit: int
    failed_location: bool

    def jobs(self, name: str = "") -> list[FakeJob]: ...

    def listed_jobs(self) -> list[FakeJob]: ...

    def create(
        self, name: str, project_id: str, region: str, labels: dict[str, str], request: dict[str, Any]
    ) -> FakeJob: ...


class Service:
    """The methods of Dataflow's API that the library calls."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    async def launch_flex_template(self, request: Any, context: Any) -> Any:
        """Handle the API's method LaunchFlexTemplate, which launches a job from a flex template."""
        job = await self._launch(request, request.launch_parameter, context)
        return api.LaunchFlexTemplateResponse(job=self._described(job, full=True))

    async def launch_template(self, request: Any, context: Any) -> Any:
        """Handle the API's method LaunchTemplate, which launches a job from a classic template."""
        job = await self._launch(request, request.launch_parameters, context)
        return api.LaunchTemplateResponse(job=self._described(job, full=True))

    async def get_job(self, request: Any, context: Any) -> Any:
        """Handle the API's method GetJob, which returns a job. With a summary view, the returned job contains no
        labels.
        """
        job = await self._find(request, context)
        if not job.is_older_than(self._store.get_lag if job.get_lag is None else job.get_lag):
            await _not_found(request, context)
        return self._described(job, full=request.view not in _SUMMARY_VIEWS)

    async def list_jobs(self, request: Any, context: Any) -> Any:
        """Handle the API's method ListJobs, which returns summaries of jobs without labels."""
        kind = api.ListJobsRequest.Filter
        found = [
            job
            for job in self._store.listed_jobs()
            if (job.project_id, job.region) == (request.project_id, request.location)
            and (not request.name or job.name == request.name)
            and (request.filter != kind.ACTIVE or job.state not in NOT_ACTIVE)
            and (request.filter != kind.TERMINATED or job.state in NOT_ACTIVE)
        ]
        found.sort(key=lambda job: (True, job.since) if job.state in NOT_ACTIVE else (False, job.created_at))
        page, token = self._page(found, request)
        if self._store.failed_location:
            lost = [api.FailedLocation(name=request.location)]
            return api.ListJobsResponse(failed_location=lost)
        jobs = [self._described(job, full=False) for job in page]
        return api.ListJobsResponse(jobs=jobs, next_page_token=token)

    async def update_job(self, request: Any, context: Any) -> Any:
        """Handle the API's method UpdateJob, which cancels or drains a job."""
        job = await self._find(request, context)
        states = api.JobState
        how = {states.JOB_STATE_CANCELLED: "cancel", states.JOB_STATE_DRAINED: "drain"}.get(
            request.job.requested_state
        )
        if how is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "requested_state must cancel or drain")
        if job.is_finished:
            message = f"({job.id}): the job has terminated in state {job.state}"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, message)
        if how == "drain" and not job.streaming:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "only streaming jobs can be drained")
        job.stop(str(how))
        return self._described(job, full=False)

    async def list_job_messages(self, request: Any, context: Any) -> Any:
        """Handle the API's method ListJobMessages, which returns the messages of a job, the oldest first."""
        job = await self._find(request, context)
        least = _LEAST_OF_NUMBER.get(int(request.minimum_importance), 0)
        pb = type(request).pb(request)
        start = pb.start_time.ToNanoseconds() if pb.HasField("start_time") else 0
        end = pb.end_time.ToNanoseconds() if pb.HasField("end_time") else 2**63
        found = sorted(
            (
                message
                for message in job.messages
                if IMPORTANCES.index(message.importance) >= least
                and start <= _nanoseconds(message.time) < end
            ),
            key=lambda message: message.time,
        )
        page, token = self._page(found, request)
        answer = api.ListJobMessagesResponse(next_page_token=token)
        for message in page:
            added = api.ListJobMessagesResponse.pb(answer).job_messages.add(
                id=message.id,
                message_text=message.text,
                message_importance=NUMBER_OF_IMPORTANCE[message.importance],
            )
            added.time.FromNanoseconds(_nanoseconds(message.time))
        return answer

    async def get_job_metrics(self, request: Any, context: Any) -> Any:
        """Handle the API's method GetJobMetrics, which returns the metrics of a job."""
        job = await self._find(request, context)
        answer = api.JobMetrics()
        for name, scalar in job.metrics.items():
            added = api.JobMetrics.pb(answer).metrics.add()
            added.name.origin, added.name.name = "user", name
            added.scalar.number_value = scalar
        return answer

    async def _launch(self, request: Any, parameters: Any, context: Any) -> FakeJob:
        name, labels = parameters.job_name, dict(parameters.environment.additional_user_labels)
        if not _NAME.fullmatch(name):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"invalid job name {name!r}")
        for key, value in labels.items():
            if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"invalid label {key!r}: {value!r}")
        active = [
            job
            for job in self._store.jobs()
            if job.name == name and job.region == request.location and not job.is_finished
        ]
        described = MessageToDict(type(request).pb(request))
        if parameters.update:
            if not active or active[-1].state != RUNNING:
                message = f"there is no running job named {name} to update"
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
            new = self._store.create(name, request.project_id, request.location, labels, described)
            active[-1].replace(new.id)
            return new
        if active and self._store.second_launch == "return":
            return active[0]
        if active:
            message = (
                f"There is already an active job named {name}. If you want to submit a second job, try again by "
                "setting a different name."
            )
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, message)
        return self._store.create(name, request.project_id, request.location, labels, described)

    async def _find(self, request: Any, context: Any) -> FakeJob:
        for job in self._store.jobs():
            place = (job.id, job.project_id, job.region)
            if place == (request.job_id, request.project_id, request.location):
                return job
        await _not_found(request, context)
        # Not reached, because abort() raises an exception.
        raise AssertionError

    def _described(self, job: FakeJob, *, full: bool) -> Any:
        has_labels = job.is_older_than(self._store.label_lag if job.label_lag is None else job.label_lag)
        return _described(job, full=full, labels=job.labels if has_labels else {})

    def _page(self, found: list[Any], request: Any) -> tuple[list[Any], str]:
        start = int(request.page_token or 0)
        end = start + min(request.page_size or self._store.page_limit, self._store.page_limit)
        return found[start:end], str(end) if end < len(found) else ""


METHODS: dict[str, list[tuple[str, str, Any, Any]]] = {
    "FlexTemplatesService": [
        (
            "LaunchFlexTemplate",
            "launch_flex_template",
            api.LaunchFlexTemplateRequest,
            api.LaunchFlexTemplateResponse,
        )
    ],
    "TemplatesService": [
        ("LaunchTemplate", "launch_template", api.LaunchTemplateRequest, api.LaunchTemplateResponse)
    ],
    "JobsV1Beta3": [
        ("GetJob", "get_job", api.GetJobRequest, api.Job),
        ("UpdateJob", "update_job", api.UpdateJobRequest, api.Job),
        ("ListJobs", "list_jobs", api.ListJobsRequest, api.ListJobsResponse),
    ],
    "MetricsV1Beta3": [("GetJobMetrics", "get_job_metrics", api.GetJobMetricsRequest, api.JobMetrics)],
    "MessagesV1Beta3": [
        ("ListJobMessages", "list_job_messages", api.ListJobMessagesRequest, api.ListJobMessagesResponse)
    ],
}


def handlers(store: JobStore) -> list[Any]:
    """Return the handlers for the gRPC server of the fake Dataflow."""
    service = Service(store)
    return [
        grpc.method_handlers_generic_handler(
            f"google.dataflow.v1beta3.{name}",
            {
                method: grpc.unary_unary_rpc_method_handler(
                    _served(store, method, getattr(service, function)),
                    request_deserializer=request.deserialize,
                    response_serializer=response.serialize,
                )
                for method, function, request, response in methods
            },
        )
        for name, methods in METHODS.items()
    ]


def _served(store: JobStore, method: str, answer: Any) -> Any:
    async def serve(request: Any, context: Any) -> Any:
        await store.trouble.arrive(method, context)
        response = await answer(request, context)
        await store.trouble.leave(method, context)
        return response

    return serve


async def _not_found(request: Any, context: Any) -> None:
    await context.abort(
        grpc.StatusCode.NOT_FOUND, f"Information about job {request.job_id} could not be found in our system."
    )


def _described(job: FakeJob, *, full: bool, labels: dict[str, str]) -> Any:
    known = not (job.hides_type and job.state == QUEUED)
    kinds = api.JobType
    described = api.Job(
        id=job.id,
        name=job.name,
        project_id=job.project_id,
        location=job.region,
        type_=(kinds.JOB_TYPE_STREAMING if job.streaming else kinds.JOB_TYPE_BATCH) if known else 0,
        **({"labels": labels, "replaced_by_job_id": job.replaced_by} if full else {}),
    )
    pb = api.Job.pb(described)
    # The number is set directly, because the enumeration may not contain it.
    pb.current_state = job.state
    pb.create_time.FromNanoseconds(_nanoseconds(job.created_at))
    pb.current_state_time.FromNanoseconds(_nanoseconds(job.since))
    return described


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1_000_000) * 1_000
