"""Following a job to the state that is waited for: its states, its messages, its replacements, its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, ClassVar, Final

from deferrable_ops.exceptions import DataflowError, DataflowUnavailable
from deferrable_ops.outcome import Failure, Outcome, Success
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.dataflow.states import Meaning, meaning
from deferrable_ops.upstreams.dataflow.client import (
    Dataflow,
    Job,
    JobMessage,
    MessageCursor,
    MessagesWanted,
    Place,
    Update,
    use_dataflow,
)
from deferrable_ops.upstreams.dataflow.jobs import CANCELLED, DRAINED, RUNNING

JOB_ID: Final = "job_id"
JOB_LINK_KEY: Final = "_link_DataflowJobLink"
DEFAULT_POLL_INTERVAL: Final = 30.0

_LEVELS = {"ERROR": logging.ERROR, "WARNING": logging.WARNING}
_REASON_SECONDS = 60.0
_TRY_AGAIN_AFTER = 10.0
_REASON_CHARACTERS = 4_000


def job_link(project_id: str, region: str, job_id: str) -> str:
    """Return where the Google Cloud console shows a job."""
    return f"https://console.cloud.google.com/dataflow/jobs/{region}/{job_id}?project={project_id}"


class PlacedTrigger(TaskTrigger):
    """A trigger that works in one project and region, with one account's credentials.

    :param gcp_conn_id: an Airflow connection; None takes the application default credentials.
    :param impersonation_chain: a service account to act as, or a chain of them.
    :param poll_interval: seconds between two looks at all jobs of the place; the smallest of all its waits counts.
    """

    feature: ClassVar[str] = "dataflow"
    place_arguments: ClassVar[tuple[str, ...]] = (
        "project_id",
        "region",
        "gcp_conn_id",
        "impersonation_chain",
        "poll_interval",
    )

    def __init__(
        self,
        *,
        project_id: str = "",
        region: str = "",
        gcp_conn_id: str | None = None,
        impersonation_chain: str | list[str] | None = None,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.project_id = project_id
        self.region = region
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.poll_interval = poll_interval

    @property
    def place(self) -> Place:
        """Where the job is: what all waits of one place share."""
        chain = self.impersonation_chain or ()
        accounts = (chain,) if isinstance(chain, str) else tuple(chain)
        return Place(self.project_id, self.region, self.gcp_conn_id, accounts)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Dataflow]:
        """Use the place's client, however long its credentials take to load.

        :raises ConfigurationError: something is not installed, or there are no credentials.
        :raises DataflowRefused: the credentials were refused.
        """
        async with AsyncExitStack() as stack:
            while True:
                try:
                    dataflow = await stack.enter_async_context(use_dataflow(self.place))
                    break
                except DataflowUnavailable as error:
                    self.log.warning("%s; trying again in %g s", error, _TRY_AGAIN_AFTER)
                    await asyncio.sleep(_TRY_AGAIN_AFTER)
            yield dataflow


class FollowingTrigger(PlacedTrigger):
    """A trigger that waits for one job.

    :param expected_state: "done", "running" or "drained"; None: "running" for a streaming job, "done" for any other.
    :param log_messages: the least importance of the job's messages that appear in the task's log; None: none do.
    """

    job_arguments: ClassVar[tuple[str, ...]] = (
        *PlacedTrigger.place_arguments,
        "expected_state",
        "log_messages",
    )

    _ended = False  # the job has: nothing of it is left to be stopped

    def __init__(
        self, *, expected_state: str | None = None, log_messages: str | None = "WARNING", **place: Any
    ) -> None:
        super().__init__(**place)
        self.expected_state = expected_state
        self.log_messages = log_messages
        # How far this wait has come, as its row keeps it.
        self._job_id: str | None = None
        self._state: str | None = None
        self._read: MessageCursor | None = None

    @property
    def xcoms_to_clear(self) -> tuple[str, ...]:
        """The XComs that an earlier attempt may have left."""
        return (*super().xcoms_to_clear, JOB_ID, JOB_LINK_KEY)

    async def follow(self, dataflow: Dataflow, job_id: str) -> Outcome:
        """Return what comes of a job, or of the jobs that replace it.

        :raises DataflowRefused: Dataflow refuses to tell.
        """
        self._remember()
        followed: str | Outcome = job_id
        while isinstance(followed, str):
            await self._show(followed)
            followed = await self._watch(dataflow, followed)
        return followed

    async def _watch(self, dataflow: Dataflow, job_id: str) -> Outcome | str:
        wanted = None if self.log_messages is None else MessagesWanted(self.log_messages, self._read)
        with dataflow.watch(job_id, interval=self.poll_interval, messages=wanted) as watch:
            while True:
                update = await watch.next()
                self._tell(update)
                await self._note()
                if update.job is not None:
                    ending = await self._judge(dataflow, update.job)
                    if ending is not None:
                        return ending

    async def _judge(self, dataflow: Dataflow, job: Job) -> Outcome | str | None:
        """Return how the wait ends, or the id of the job that it goes on with; None while it goes on with this one."""
        if job.state == RUNNING and job.is_streaming is None and self.expected_state is None:
            job = await dataflow.get(job.id)
        match meaning(job.state, self.expected_state, job.is_streaming):
            case Meaning.REACHED:
                self._ended = job.is_finished
                return Success((job if job.labels else await dataflow.get(job.id)).as_dict())
            case Meaning.FAILED:
                self._ended = True
                return Failure(await self._reason(dataflow, job))
            case Meaning.REPLACED:
                return await self._replacement(dataflow, job)
            case Meaning.UNHEARD_OF:
                self.log.warning("The state %s is unknown to this version: the wait goes on", job.state_name)
        return None

    async def _replacement(self, dataflow: Dataflow, job: Job) -> str:
        while job.replaced_by is None:  # the API may name it a moment later
            await asyncio.sleep(self.poll_interval)
            job = await dataflow.get(job.id)
        self.log.info("The job %s was updated: the wait goes on with %s", job.id, job.replaced_by)
        return job.replaced_by

    async def _reason(self, dataflow: Dataflow, job: Job) -> str:
        if job.state == CANCELLED:
            return f"the job {job.id} was cancelled"
        if job.state == DRAINED:
            return (
                f"the job {job.id} was drained before it was done; "
                "where that is a success, say expected_state='drained'"
            )
        try:
            async with asyncio.timeout(_REASON_SECONDS):
                errors = await dataflow.messages(job.id, least="ERROR")
        except (DataflowError, TimeoutError) as error:
            return f"the job {job.id} failed; its error messages could not be read ({error})"
        texts = "\n".join(dict.fromkeys(message.text for message in errors))
        # What ends a job comes last.
        return f"the job {job.id} failed: {texts[-_REASON_CHARACTERS:] or 'it has no error messages'}"

    def _tell(self, update: Update) -> None:
        for message in update.messages:
            self._log_message(message)
        if update.cursor is not None:
            self._read = update.cursor
        if update.job is not None and update.job.state_name != self._state:
            self._state = update.job.state_name
            self.log.info("The job %s is in %s", update.job.id, self._state)

    def _log_message(self, message: JobMessage) -> None:
        level = _LEVELS.get(message.importance, logging.INFO)
        self.log.log(level, "Dataflow, %s: %s", message.time, message.text)

    def _remember(self) -> None:
        progress = self.current.progress or {}
        self._job_id, self._state = progress.get("job_id"), progress.get("state")
        read = progress.get("read")
        self._read = None if read is None else MessageCursor.from_json(read)

    async def _note(self) -> None:
        read = None if self._read is None else self._read.as_json()
        progress = {"job_id": self._job_id, "state": self._state, "read": read}
        if progress != self.current.progress:
            await self.inbox.waits.save_progress(self.current.id, progress)

    async def _show(self, job_id: str) -> None:
        """Show which job it is, as XCom and as link, unless that was done before."""
        if job_id == self._job_id:
            return
        if self._job_id is not None:  # a replacement has messages of its own
            self._read = self._state = None
        link = job_link(self.project_id, self.region, job_id)
        xcoms = {JOB_LINK_KEY: link} | ({JOB_ID: job_id} if self.do_xcom_push else {})
        for key, value in xcoms.items():
            try:
                await self.push_xcom(key, value)
            except Exception as error:
                self.log.warning("The XCom %s could not be set: %s", key, type(error).__name__)
        self._job_id = job_id
        await self._note()
