"""The rival: a trigger that polls its job by itself, as the google provider's ``TemplateJobStartTrigger`` does.

It is that trigger's ``run()`` and its hook's ``get_job()``, line by line, of apache-airflow-providers-google 22.8.0:
one GetJob per trigger and interval, each through a client, and so a channel, made for this call. It is spared what
the provider has to pay with Google: loading the credentials, a token, and TLS.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from airflow.triggers.base import BaseTrigger, TriggerEvent
from google.api_core.client_options import ClientOptions
from google.api_core.exceptions import ServiceUnavailable
from google.auth.credentials import AnonymousCredentials
from google.cloud.dataflow_v1beta3 import GetJobRequest, Job, JobState, JobsV1Beta3AsyncClient, JobView

from deferrable_ops import settings

CLASSPATH = "bench.dataflow.rival.RivalTrigger"


class RivalTrigger(BaseTrigger):
    """Waits until a job has ended."""

    def __init__(self, project_id: str, job_id: str, location: str, poll_sleep: float) -> None:
        super().__init__()
        self.project_id = project_id
        self.job_id = job_id
        self.location = location
        self.poll_sleep = poll_sleep

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the classpath and the kwargs that make this trigger again."""
        kwargs = {name: getattr(self, name) for name in ("project_id", "job_id", "location", "poll_sleep")}
        return CLASSPATH, kwargs

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until the job has ended."""
        hook = RivalHook()
        while True:
            try:
                job = await hook.get_job(self.job_id, self.project_id, self.location)
            except ServiceUnavailable as error:
                self.log.warning("Dataflow API is temporarily unavailable. Retrying... (%s)", error)
                await asyncio.sleep(self.poll_sleep)
                continue
            status = job.current_state
            if status in (JobState.JOB_STATE_DONE, JobState.JOB_STATE_FAILED, JobState.JOB_STATE_STOPPED):
                yield TriggerEvent({"job_id": self.job_id, "status": status.name})
                return
            self.log.info("Job is still running...")
            self.log.info("Current job status is: %s", status.name)
            self.log.info("Sleeping for %s seconds.", self.poll_sleep)
            await asyncio.sleep(self.poll_sleep)


class RivalHook:
    """Reads a job. It keeps its credentials and nothing else."""

    def __init__(self) -> None:
        self._credentials = AnonymousCredentials()

    async def get_job(self, job_id: str, project_id: str, location: str) -> Job:
        """Return the job, through a new client."""
        client = JobsV1Beta3AsyncClient(
            credentials=self._credentials, transport=_transport, client_options=ClientOptions()
        )
        request = GetJobRequest(
            {
                "project_id": project_id,
                "job_id": job_id,
                "view": JobView.JOB_VIEW_SUMMARY,
                "location": location,
            }
        )
        return await client.get_job(request=request)


def _transport(**options: Any) -> Any:
    return JobsV1Beta3AsyncClient.get_transport_class("grpc_asyncio")(**options, channel=_channel)


def _channel(_host: str, *, options: list[tuple[str, Any]], **_credentials: Any) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(settings.dataflow_emulator_host(), options=options)
