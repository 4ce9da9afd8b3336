"""Watches a Dataflow job until the job reaches the expected state, and logs the job's states and messages."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, ClassVar, Final
from urllib.parse import quote

from deferrable_ops.backoff import Backoff
from deferrable_ops.exceptions import (
    DataflowError,
    DataflowRefused,
    DataflowUnavailable,
    LaunchRefused,
    MissingCredentials,
)
from deferrable_ops.inbox.large_values import as_xcom
from deferrable_ops.outages import REPORT_LASTS, outages
from deferrable_ops.outcome import Failure, Outcome, Success
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.dataflow.launch import FEWEST_READS
from deferrable_ops.triggers.dataflow.states import StateMeaning, interpret_state
from deferrable_ops.upstreams.dataflow.client import (
    Dataflow,
    DataflowTarget,
    Job,
    JobMessage,
    MessageCursor,
    MessagesWanted,
    ReadProblem,
    Update,
    use_dataflow,
)
from deferrable_ops.upstreams.dataflow.jobs import CANCELLED, DONE, DRAINED, RUNNING

JOB: Final = "job"
JOB_ID: Final = "job_id"
JOB_LINK_KEY: Final = "_link_DataflowJobLink"
DEFAULT_POLL_INTERVAL: Final = 30.0

_LEVELS = {"ERROR": logging.ERROR, "WARNING": logging.WARNING}
_REASON_TIMEOUT = 60.0
_LONGEST_PAUSE = 30.0
_REASON_CHARACTERS = 4_000
# More messages of one job are not written to the task's log.
_MAX_LOGGED = 1_000
# An error that only this task has is in the task's log after this many seconds, then at doubling intervals.
_PROBLEM_AFTER, _LONGEST_INTERVAL = 20.0, 3600.0
_CONSOLE = "to read all messages, use the task's link to the job in the Google Cloud console"


def job_link(project_id: str, region: str, job_id: str) -> str:
    """Return the URL of a job in the Google Cloud console."""
    return f"https://console.cloud.google.com/dataflow/jobs/{region}/{job_id}?project={project_id}"


def launcher_log_link(project_id: str, job_id: str) -> str:
    """Return the URL of the log of a flex template's launcher in Cloud Logging."""
    query = "\n".join(
        (
            'resource.type="dataflow_step"',
            f'resource.labels.job_id="{job_id}"',
            f'logName="projects/{project_id}/logs/dataflow.googleapis.com%2Flauncher"',
        )
    )
    return f"https://console.cloud.google.com/logs/query;query={quote(query, safe='')}?project={project_id}"


class DataflowTrigger(TaskTrigger):
    """Base class of the Dataflow triggers, with the project, the region and the credentials.

    :param project_id: the id of the Google Cloud project. If None, the project of the credentials is used.
    :param gcp_conn_id: the id of the Airflow connection that has the credentials for the Dataflow API. If None, the
        connection ``google_cloud_default`` is used. If the connection ``google_cloud_default`` does not exist, the
        application default credentials are used.
    :param impersonation_chain: the service account to impersonate. With a list of service accounts, each account
        impersonates the next one, and the last account makes the API calls.
    :param poll_interval: seconds between two polls. All tasks with the same project, region and credentials share the
        polls, and the smallest `poll_interval` of these tasks applies.
    """

    feature: ClassVar[str] = "dataflow"
    target_arguments: ClassVar[tuple[str, ...]] = (
        "project_id",
        "region",
        "gcp_conn_id",
        "impersonation_chain",
        "poll_interval",
    )

    credentials_refused_for: ClassVar[float] = 30.0
    """If the task has not started yet, refused credentials fail the task only after this many seconds of refusals."""

    read_refused_for: ClassVar[float] = 300.0
    """The trigger treats a job as gone, or a refusal as final, only if each read is refused for this many seconds.
    Missing credentials also fail the task only after this time, because the machine's metadata server may start late.
    """

    # The project of the credentials, if project_id is None.
    _default_project = ""
    # Before the task has started: the last refusal's gRPC status, the time of the first such refusal, their number.
    _refusal: tuple[str | None, float, int] | None = None
    # The last error that only this task has; its start; and the seconds after which it is due in the task's log.
    _problem: str | None = None
    _problem_since: float = 0.0
    _problem_due: float = _PROBLEM_AFTER

    def __init__(
        self,
        *,
        project_id: str | None = None,
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
    def target(self) -> DataflowTarget:
        """The project, the region and the credentials of this trigger."""
        chain = self.impersonation_chain or ()
        accounts = (chain,) if isinstance(chain, str) else tuple(chain)
        return DataflowTarget(self.project_id or "", self.region, self.gcp_conn_id, accounts)

    @property
    def sources(self) -> tuple[str, ...]:
        """The name of the Dataflow region, in a tuple. Outages of this region are recorded under this name."""
        return (self.target.source,)

    @abstractmethod
    async def work(self) -> Outcome:
        """Launch, watch or stop the Dataflow jobs, as the task requires. Return the outcome of the task."""

    async def wait(self) -> Outcome:
        """Call :meth:`work`, and return its outcome. Stop the call if the task's wait ends before :meth:`work` has
        ended.

        :raises DataflowUnavailable: if Dataflow refused a request or the credentials, but may accept them later.
        """
        try:
            return await self.race_with_settlement(self.work())
        except LaunchRefused:
            raise
        except (DataflowRefused, MissingCredentials) as error:
            if self.started or self._is_repeated(error):
                raise
            raise DataflowUnavailable(str(error)) from error

    def _is_repeated(self, error: DataflowRefused | MissingCredentials) -> bool:
        """Count an error. Return whether the same error has lasted for so long that the task fails."""
        code = error.code if isinstance(error, DataflowRefused) else None
        now = time.monotonic()
        _, since, count = self._refusal if self._refusal and self._refusal[0] == code else (code, now, 0)
        self._refusal = code, since, count + 1
        within = self.credentials_refused_for if code == "" else self.read_refused_for
        return count + 1 >= FEWEST_READS and now - since >= within

    def _report_outage(self, error: BaseException, pause: float) -> None:
        refused = error if isinstance(error, DataflowRefused) else error.__cause__
        if not isinstance(refused, DataflowRefused) or not refused.code:
            super()._report_outage(error, pause)
            return
        # A refused request is no outage for the other tasks of the region.
        if self._backoff is None or self._backoff.failures == 1:
            self._problem_since = time.monotonic()
        self._log_problem(refused, time.monotonic() - self._problem_since)

    def _log_problem(self, error: DataflowError, seconds: float) -> None:
        """Write an error to the task's log, if the next log line about the error is due. Other tasks do not have this
        error.

        :param seconds: for how many seconds each request has failed with this error.
        """
        self._problem = str(error)
        if seconds < _PROBLEM_AFTER:
            self._problem_due = _PROBLEM_AFTER
        elif seconds >= self._problem_due:
            self._problem_due = seconds + min(seconds, _LONGEST_INTERVAL)
            self.log.warning(
                "%s; retrying until the deadline, because each request has failed for %.0f s so far",
                error,
                seconds,
            )

    def note_problem(self, problem: ReadProblem) -> bool:
        """Write a failed read of a job to the task's log. Return whether the job no longer exists."""
        error = problem.error
        # An outage of the region is in the task's log already.
        if all(outage.source != self.target.source for outage in outages.active()):
            self._log_problem(error, problem.seconds)
        return error.code == "NOT_FOUND" and self._is_final(problem)

    def _is_final(self, problem: ReadProblem) -> bool:
        is_repeated = problem.reads >= FEWEST_READS and problem.seconds >= self.read_refused_for
        return is_repeated and isinstance(problem.error, DataflowRefused)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Dataflow]:
        """Use the client that all tasks with the same project, region and credentials share.

        If the credentials cannot be loaded because of a temporary error, loading is retried without a limit.

        :raises ConfigurationError: if a Python package or a connection is missing, or no credentials were found.
        :raises DataflowRefused: if Google refused the credentials.
        """
        async with AsyncExitStack() as stack:
            backoff = Backoff(longest_pause=_LONGEST_PAUSE)
            while True:
                try:
                    dataflow = await stack.enter_async_context(use_dataflow(self.target))
                    break
                except DataflowUnavailable as error:
                    outages.failed(self.target.source, str(error), lasts=REPORT_LASTS)
                    await asyncio.sleep(backoff.failed())
            if backoff.failures or self._backoff is not None:
                outages.recovered(self.target.source)
            if not self.project_id:
                self._default_project = dataflow.project_id
            yield dataflow


class FollowingTrigger(DataflowTrigger):
    """Base class of the triggers that wait for one Dataflow job.

    :param expected_state: the state of the job for which the task waits: "done", "running" or "drained". If
        `expected_state` is None, the state is "running" for a streaming job, otherwise "done".
    :param log_messages: the lowest importance of the job's messages that are written to the task's log; if
        `log_messages` is None, no messages are written.
    :param expected_states: the API's names of the states in which the task succeeds. If `expected_states` is None,
        `expected_state` is used.
    :param result: the value of a successful task: "job" is the job, "id" is the job's id, and "metrics" is the job with
        its metrics. With "id", the XCom ``job`` contains the job.
    """

    __slots__ = ("_is_streaming", "_job_id", "_left_out", "_logged", "_read", "_state")

    job_arguments: ClassVar[tuple[str, ...]] = (
        *DataflowTrigger.target_arguments,
        "expected_state",
        "log_messages",
        "expected_states",
        "result",
    )

    def __init__(
        self,
        *,
        expected_state: str | None = None,
        log_messages: str | None = "WARNING",
        expected_states: list[str] | None = None,
        result: str = "job",
        **target: Any,
    ) -> None:
        super().__init__(**target)
        self.expected_state = expected_state
        self.log_messages = log_messages
        self.expected_states = expected_states
        self.result = result
        # The following attributes are the progress, which is stored with the wait.
        self._job_id: str | None = None
        self._state: str | None = None
        self._read: MessageCursor | None = None
        # Whether the job is a streaming job; None if this is not known.
        self._is_streaming: bool | None = None
        # How many messages of the job were written to the task's log, and how many were not.
        self._logged = self._left_out = 0

    @property
    def xcoms_to_clear(self) -> tuple[str, ...]:
        """The keys of XComs that an earlier attempt of the task may have set."""
        job = (JOB,) if self.result == "id" else ()
        return (*super().xcoms_to_clear, JOB_ID, JOB_LINK_KEY, *job)

    async def follow(self, dataflow: Dataflow, job_id: str) -> Outcome:
        """Wait for a job, or for the job that replaces it after an update, and return the outcome.

        :raises DataflowRefused: if Dataflow refused a request.
        """
        self._load_progress()
        followed: str | Outcome = job_id
        while isinstance(followed, str):
            await self._publish_job_id(followed)
            followed = await self._watch(dataflow, followed)
        return followed

    async def _watch(self, dataflow: Dataflow, job_id: str) -> Outcome | str:
        wanted = None if self.log_messages is None else MessagesWanted(self.log_messages, self._read)
        with dataflow.watch(job_id, interval=self.poll_interval, messages=wanted) as watch:
            while True:
                update = await watch.next()
                if update.problem is None:
                    self.started = True
                    if self._problem is not None:
                        self._problem = None
                elif (failure := self._evaluate_problem(job_id, update.problem)) is not None:
                    return failure
                self._log_update(update)
                await self._save_progress()
                if update.job is not None:
                    ending = await self._evaluate(dataflow, update.job)
                    if ending is not None:
                        return ending

    def _evaluate_problem(self, job_id: str, problem: ReadProblem) -> Outcome | None:
        """Return the task's outcome if the job no longer exists or was never readable. Return None if the task must
        wait longer.
        """
        error = problem.error
        if self.note_problem(problem):
            return Failure(f"the job {job_id} does not exist any more: {error}", retryable=self.started)
        is_final = not self.started and self._is_final(problem)
        return Failure(str(error), retryable=False) if is_final else None

    def with_problem(self, reason: str) -> str:
        """Return the reason why the task timed out. If the last read of the job failed, the reason also contains the
        read's error.
        """
        return reason if self._problem is None else f"{reason}; {self._problem}"

    async def _evaluate(self, dataflow: Dataflow, job: Job) -> Outcome | str | None:
        """Return the task's outcome, the id of the job that replaces this job, or None if the task must wait longer."""
        by_type = self.expected_state is None and self.expected_states is None
        if job.state == RUNNING and job.is_streaming is None and by_type:
            job = await dataflow.get(job.id)
        match interpret_state(job.state, self.expected_state, job.is_streaming, self.expected_states):
            case StateMeaning.REACHED:
                return await self.succeed(dataflow, job if job.labels else await dataflow.get(job.id))
            case StateMeaning.FAILED:
                return Failure(await self._failure_reason(dataflow, job))
            case StateMeaning.REPLACED:
                return await self._replacement(dataflow, job)
            case StateMeaning.UNKNOWN:
                self.log.warning(
                    "This version of airflow-deferrable-ops does not know the job state %s; continuing to wait",
                    job.state_name,
                )
        return None

    async def succeed(self, dataflow: Dataflow, job: Job) -> Success:
        """Return the outcome of a task whose job is in the expected state."""
        described = job.as_dict()
        if self.result == "metrics":
            try:
                described["metrics"] = await dataflow.metrics(job.id)
            except DataflowRefused as refused:
                # The job has done its work, so the task must not fail.
                self.log.warning(
                    "The result of this task has no metrics, because they could not be read: %s", refused
                )
                described["metrics"] = None
        if self.result != "id":
            return Success(described)
        if self.do_xcom_push:
            if as_xcom(self.current.id, described) is described:
                await self._push(JOB, described)
            else:
                self.log.warning(
                    "The XCom %s was not set, because its value is larger than max_xcom_bytes", JOB
                )
        return Success(job.id)

    async def _replacement(self, dataflow: Dataflow, job: Job) -> str:
        # The API may return the id of the new job later than the state UPDATED.
        while job.replaced_by is None:
            await asyncio.sleep(self.poll_interval)
            job = await dataflow.get(job.id)
        self.log.info(
            "The job %s was updated; continuing with the job %s, which replaces it", job.id, job.replaced_by
        )
        return job.replaced_by

    async def _failure_reason(self, dataflow: Dataflow, job: Job) -> str:
        if job.state == CANCELLED:
            texts = await self._messages(dataflow, job, "WARNING") or await self._messages(
                dataflow, job, "BASIC"
            )
            return f"the job {job.id} was cancelled" + (f": {texts}" if texts else "")
        if self.expected_states is not None and job.state in (DONE, DRAINED):
            expected = ", ".join(self.expected_states)
            return f"the job {job.id} ended in the state {job.state_name}, but expected_states= has only {expected}"
        if job.state == DRAINED:
            return (
                f"the job {job.id} was drained before it was done; "
                "if a drained job is a success, set expected_state='drained'"
            )
        texts = await self._messages(dataflow, job, "ERROR")
        reason = f"the job {job.id} failed: {texts or 'the job has no error messages'}"
        # A flex template's launcher runs before the job. Its output is not in the job's messages.
        if job.is_streaming is None or "launch" in texts.lower():
            reason += (
                f"\nThe log of the launcher: {launcher_log_link(job.project_id, job.id)}"
                f"\nThe job: {job_link(job.project_id, self.region, job.id)}"
            )
        return reason

    async def _messages(self, dataflow: Dataflow, job: Job, least: str) -> str:
        """Return the texts of a job's messages, for the error message of a failed task; "" if the job has no such
        messages.
        """
        try:
            async with asyncio.timeout(_REASON_TIMEOUT):
                messages = await dataflow.messages(job.id, least=least)
        except (DataflowError, TimeoutError) as error:
            return f"its messages could not be read ({str(error) or 'timeout'})"
        # Keep the end of the text, because the last message describes why the job ended.
        return "\n".join(dict.fromkeys(message.text for message in messages))[-_REASON_CHARACTERS:]

    def _log_update(self, update: Update) -> None:
        room = max(0, _MAX_LOGGED - self._logged)
        messages = update.messages[-room:] if room else ()
        for message in messages:
            self._log_message(message)
        self._logged += len(messages)
        left_out = update.left_out + len(update.messages) - len(messages)
        if left_out and not self._left_out:
            self.log.warning(
                "The job has more messages than this log shows (at most %d); %s", _MAX_LOGGED, _CONSOLE
            )
        self._left_out += left_out
        if update.cursor is not None:
            self._read = update.cursor
        if update.job is not None and update.job.is_streaming is not None:
            self._is_streaming = update.job.is_streaming
        if update.job is not None and update.job.state_name != self._state:
            self._state = update.job.state_name
            self.log.info("The job %s is in the state %s", update.job.id, self._state)
            if update.job.is_finished and self._left_out:
                self.log.warning(
                    "%d messages of the job %s are not in this log; %s",
                    self._left_out,
                    update.job.id,
                    _CONSOLE,
                )

    def _log_message(self, message: JobMessage) -> None:
        level = _LEVELS.get(message.importance, logging.INFO)
        self.log.log(level, "Dataflow, %s: %s", message.time, message.text)

    def _load_progress(self) -> None:
        progress = self.current.progress or {}
        self._job_id, self._state = progress.get("job_id"), progress.get("state")
        read = progress.get("read")
        self._read = None if read is None else MessageCursor.from_json(read)
        self._logged, self._left_out = progress.get("logged", 0), progress.get("left_out", 0)

    async def _save_progress(self) -> None:
        read = None if self._read is None else self._read.as_json()
        progress: dict[str, Any] = {"job_id": self._job_id, "state": self._state, "read": read}
        progress |= {"logged": self._logged, "left_out": self._left_out} if self._logged else {}
        if progress != self.current.progress:
            await self.inbox.waits.save_progress(self.current.id, progress)

    async def _publish_job_id(self, job_id: str) -> None:
        """Set two XComs: the job's id, and the link to the job in the Google Cloud console. Do nothing if the XComs are
        set already.
        """
        if job_id == self._job_id:
            return
        # A job that replaces another job has its own messages.
        if self._job_id is not None:
            self._read = self._state = None
            self._logged = self._left_out = 0
        link = job_link(self.project_id or self._default_project, self.region, job_id)
        xcoms = {JOB_LINK_KEY: link} | ({JOB_ID: job_id} if self.do_xcom_push else {})
        for key, value in xcoms.items():
            await self._push(key, value)
        self._job_id = job_id
        await self._save_progress()

    async def _push(self, key: str, value: Any) -> None:
        try:
            await self.push_xcom(key, value)
        except Exception as error:
            self.log.warning(
                "Could not set the XCom %s (%s); the task continues without this XCom",
                key,
                type(error).__name__,
            )
