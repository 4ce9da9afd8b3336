"""The Dataflow triggers: launch a job and wait for it, wait for an existing job, or stop jobs."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Final, Literal, cast

from deferrable_ops.exceptions import DataflowRefused, LaunchRefused
from deferrable_ops.inbox import Wait, WaitState
from deferrable_ops.inbox.waits.launches import Claim
from deferrable_ops.outcome import Failure, Outcome, Success
from deferrable_ops.triggers.dataflow.arguments import (
    all_resolved,
    validate_launch,
    validate_sensor,
    validate_stop,
)
from deferrable_ops.triggers.dataflow.follow import JOB_ID, DataflowTrigger, FollowingTrigger
from deferrable_ops.triggers.dataflow.launch import (
    DEFAULT_TIMINGS,
    Launch,
    LaunchTimings,
    find_launched,
    get_unless_gone,
    stop_job,
)
from deferrable_ops.triggers.dataflow.request import (
    Kind,
    build_request,
    field_of,
    fixed_name,
    is_true,
    job_name,
    launch_parameters,
    name_prefix,
    task_labels,
    update_request,
)
from deferrable_ops.triggers.dataflow.states import awaits_drained
from deferrable_ops.upstreams.dataflow.client import Dataflow, Job, use_dataflow
from deferrable_ops.upstreams.dataflow.jobs import CANCELLING, DRAINING, FINISHED, UPDATED, state_name

# Refusals to stop a job that stay the same if the request is repeated.
_FINAL_REFUSALS: Final = frozenset(
    {"", "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "UNAUTHENTICATED"}
)
# A key of the wait's progress. It is set before a launch request is sent.
_LAUNCH_SENT: Final = "asked"
_ENDED: Final = frozenset(map(state_name, FINISHED - {UPDATED}))


class DataflowLaunchTrigger(FollowingTrigger):
    """Launches a Dataflow job once, and waits for the job.

    This trigger has the arguments of :class:`deferrable_ops.operators.dataflow.DataflowFlexTemplateOperator`, with all
    durations in seconds.

    :param kind: the kind of template, "flex" or "classic".
    :param when_killed: the value of the operator's argument `on_kill`. The names differ, because triggers have a method
        ``on_kill``.
    :param append_job_name: whether the job's name ends with a hash of the task attempt. If False, the jobs of all
        attempts have the same name.
    :param update: whether the launch replaces a running job with the same name.
    :param transform_name_mapping: the new names of the pipeline's renamed transforms. The keys are the names of these
        transforms in the running job.
    :param on_timeout: how the job is stopped after the deadline. If `on_timeout` is None, a streaming job keeps
        running, and any other job is stopped as `when_killed` requires.
    """

    classpath: ClassVar[str] = "deferrable_ops.triggers.dataflow.DataflowLaunchTrigger"
    arguments: ClassVar[tuple[str, ...]] = (
        *FollowingTrigger.job_arguments,
        "kind",
        "body",
        "job_name",
        "labels",
        "when_killed",
        "wait_until_finished",
        "launch_timeout",
        "on_timeout",
        "append_job_name",
        "update",
        "transform_name_mapping",
    )

    launch_timings: ClassVar[LaunchTimings] = DEFAULT_TIMINGS
    """The pauses between retries of a launch, and between requests that look for a job."""

    def __init__(
        self,
        *,
        kind: Kind = "flex",
        body: dict[str, Any] | None = None,
        job_name: str | None = None,
        labels: dict[str, str] | None = None,
        when_killed: str = "cancel",
        wait_until_finished: bool = True,
        launch_timeout: float | None = None,
        on_timeout: str | None = None,
        append_job_name: bool = True,
        update: bool = False,
        transform_name_mapping: dict[str, str] | None = None,
        **following: Any,
    ) -> None:
        super().__init__(**following)
        self.kind = kind
        self.body = body
        self.job_name = job_name
        self.labels = labels
        self.when_killed = when_killed
        self.wait_until_finished = wait_until_finished
        self.launch_timeout = launch_timeout
        self.on_timeout = on_timeout
        self.append_job_name = append_job_name
        self.update = update
        self.transform_name_mapping = transform_name_mapping

    @property
    def cancellable(self) -> bool:
        """Whether the job is stopped when a user ends the task, or after the deadline."""
        return self.when_killed != "leave" or self.on_timeout in ("cancel", "drain")

    def validate(self) -> None:
        """Check the arguments of the trigger after their templates were rendered.

        :raises InputError: if an argument is invalid. The error message shows which argument is wrong and how to
            correct it.
        """
        arguments = {name: getattr(self, name) for name in self.arguments}
        validate_launch(self.kind, arguments, self.identify().task_id, all_resolved)

    async def cancel(self, wait: Wait) -> None:
        """Cancel or drain the job, if the job may have been launched and is not finished."""
        may_be_launched = wait.launched_at is not None or (wait.progress or {}).get(_LAUNCH_SENT)
        if not may_be_launched or self._how_to_stop(wait, None) == "leave":
            return
        async with use_dataflow(self.target) as dataflow:
            job = await find_launched(
                dataflow,
                self._name(),
                wait,
                keeps_name=not self.append_job_name,
                timings=self.launch_timings,
            )
            how = self._how_to_stop(wait, job)
            if job is not None and how != "leave":
                await stop_job(dataflow, job, how, own_only=True)

    async def expired(self) -> Outcome:
        """Return a failure, because the deadline of the task has passed before the job finished."""
        job = f"the job {self._job_id}" if self._job_id else "the job"
        reason = f"{job} did not finish within the timeout of {self.timeout:g} s; {self._end_after_timeout()}"
        return Failure(self.with_problem(reason))

    def _end_after_timeout(self) -> str:
        name, how = (
            ("on_kill", self.when_killed) if self.on_timeout is None else ("on_timeout", self.on_timeout)
        )
        if how == "leave":
            return "it keeps running"
        if self.on_timeout is not None or self._is_streaming is False:
            return f"it is stopped ({name}={how!r})"
        if self._is_streaming or awaits_drained(self.expected_state, self.expected_states):
            return "it is a streaming job and keeps running; set on_timeout= to stop it"
        return f"it is stopped ({name}={how!r}), unless it is a streaming job"

    def _how_to_stop(self, wait: Wait, job: Job | None) -> Literal["cancel", "drain", "leave"]:
        """Return how to stop the job after the task's wait is over: cancel it, drain it, or leave it running.

        :param job: the job, or None if the job is not known yet. An unknown job is treated as a batch job.
        """
        how = self.when_killed
        if wait.state is WaitState.EXPIRED:
            if self.on_timeout is not None:
                how = self.on_timeout
            elif job is not None and self._is_stream(job):
                how = "leave"
        return cast("Literal['cancel', 'drain', 'leave']", how)

    def _is_stream(self, job: Job) -> bool:
        # Dataflow may not return the type of a job that has not started. Only a streaming job can be drained.
        if job.is_streaming is not None:
            return job.is_streaming
        return awaits_drained(self.expected_state, self.expected_states)

    def must_cancel_work(self, outcome: Outcome) -> bool:
        """Return True if the task failed before the launch of its job was confirmed. Dataflow may have created the job
        nevertheless, and such a job must be cancelled.

        Return False if the launch was confirmed. If the task then failed because the job's state could not be read,
        the next attempt of the task continues with the same job.
        """
        return isinstance(outcome, Failure) and self.current.launched_at is None

    async def work(self) -> Outcome:
        """Launch the job, unless an earlier run of the trigger has launched the job. Then wait for the job, and return
        its outcome.
        """
        unread = None
        if self.current.launched_at is None:
            unread = await self._previous_attempt_with_job()
            # A job was launched for this task, so no failed read makes the task fail.
            self.started = self.started or unread is not None
        async with self.client() as dataflow:
            job_id = await self._launched(dataflow, unread)
            if job_id is None:
                return Failure("this task was ended before its job was launched")
            if self.wait_until_finished:
                return await self.follow(dataflow, job_id)
            self._load_progress()
            await self._publish_job_id(job_id)
            return await self.succeed(dataflow, await dataflow.get(job_id))

    async def _launched(self, dataflow: Dataflow, unread: Wait | None) -> str | None:
        """Launch the job, unless an earlier run of this trigger has launched it. Return the job's id.

        Return None if the task's wait is already over.

        :param unread: the earlier attempt of the task whose job may still run, or None if there is no such attempt.
        """
        if self.current.launched_at is None:
            await self.stop_previous_attempts()
            if unread is not None:
                await self._adopt_job_of(unread, dataflow)
        answer = await self.launch_once(partial(self._launch_job, dataflow))
        if answer is None:
            return None
        self.started = True
        return cast("str", answer["job_id"])

    async def _launch_job(self, dataflow: Dataflow, claim: Claim) -> dict[str, str]:
        check = partial(self._save_and_check, claim)
        sent = bool((self.current.progress or {}).get(_LAUNCH_SENT))
        job = await self._launch(dataflow).until_accepted(check, self.launch_timeout, sent=sent)
        return {"job_id": job.id, "name": job.name}

    async def _previous_attempt_with_job(self) -> Wait | None:
        """Return the last attempt that launched a job, if this job may still run; otherwise None.

        The job may still run if the attempt failed because the job's state could not be read, or if the attempt's
        deadline passed.
        """
        previous = await self.inbox.waits.previous_attempt(self.current.id)
        while previous is not None and _may_have_left_job(previous):
            if previous.launch_answer is not None:
                has_ended = (previous.progress or {}).get("state") in _ENDED
                return None if has_ended else previous
            # This attempt failed before it launched or adopted a job.
            earlier = await self.inbox.waits.previous_attempt(previous.id)
            previous = earlier if earlier and earlier.created_at < previous.created_at else None
        return None

    async def _adopt_job_of(self, previous: Wait, dataflow: Dataflow) -> None:
        """Continue with the job of an earlier attempt, if this job still runs, or if its state still cannot be read.

        The previous attempt left its job running, because the attempt could not read the job's state, or because the
        attempt's deadline passed. Without this method, the current attempt would launch a second job while the first
        job still runs.
        """
        # The job that runs now may have replaced the job that was launched.
        job_id = (previous.progress or {}).get(JOB_ID) or previous.launch_answer["job_id"]
        try:
            job = await get_unless_gone(dataflow, job_id, timings=self.launch_timings)
        except DataflowRefused as refused:
            self.log.warning(
                "%s; waiting for the job of the earlier attempt, because this job may still run", refused
            )
        else:
            if job is None or job.state in (FINISHED - {UPDATED}) | {CANCELLING, DRAINING}:
                return
            if previous.state is WaitState.EXPIRED and self._how_to_stop(previous, job) != "leave":
                return

        async def adopt(_claim: Claim) -> dict[str, str]:
            self.log.info(
                "Continuing with the job %s, which an earlier attempt launched and left running", job_id
            )
            return {"job_id": job_id, "name": previous.launch_answer.get("name", "")}

        await self.launch_once(adopt)

    async def _save_and_check(self, claim: Claim) -> float:
        # Save before the launch is sent. If nothing is saved, cancel() need not look for a job, because no launch was
        # sent.
        self.started = True
        await self.inbox.waits.save_progress(self.current.id, {_LAUNCH_SENT: True})
        return await claim.check()

    def _launch(self, dataflow: Dataflow) -> Launch:
        name, wait_id = self._name(), self.current.id
        request = build_request(
            self.kind,
            project_id=dataflow.project_id,
            region=self.region,
            body=self.body or {},
            name=name,
            labels=self.labels,
            wait_id=wait_id,
            task_labels=task_labels(self.identify()),
        )
        updates = self.update or is_true(field_of(launch_parameters(self.body), "update"))
        return Launch(
            dataflow,
            self.kind,
            request,
            name,
            wait_id,
            self.log,
            keeps_name_since=None if self.append_job_name else self.current.created_at,
            update=update_request(self.kind, request, self.transform_name_mapping) if updates else None,
            timings=self.launch_timings,
        )

    def _name(self) -> str:
        attempt = self.identify()
        prefix = str(name_prefix(self.job_name, self.body, attempt.task_id))
        return job_name(prefix, attempt.wait_id) if self.append_job_name else fixed_name(prefix)


def _may_have_left_job(wait: Wait) -> bool:
    """Return whether an attempt that is over may have left its job running."""
    return wait.state is WaitState.EXPIRED or (wait.state is WaitState.FAILED and wait.cancel is None)


class DataflowJobTrigger(FollowingTrigger):
    """Waits for an existing Dataflow job.

    This trigger has the arguments of :class:`deferrable_ops.operators.dataflow.DataflowJobSensor`, with all durations
    in seconds.
    """

    classpath: ClassVar[str] = "deferrable_ops.triggers.dataflow.DataflowJobTrigger"
    arguments: ClassVar[tuple[str, ...]] = (*FollowingTrigger.job_arguments, "job_id")

    def __init__(self, *, job_id: str = "", **following: Any) -> None:
        super().__init__(**following)
        self.job_id = job_id

    @property
    def cancellable(self) -> bool:
        """Return False: the job is not stopped when a user ends the task, because the task did not launch the job."""
        return False

    def validate(self) -> None:
        """Check the arguments of the trigger after their templates were rendered.

        :raises InputError: if an argument is invalid. The error message shows which argument is wrong and how to
            correct it.
        """
        validate_sensor({name: getattr(self, name) for name in self.arguments}, all_resolved)

    async def cancel(self, wait: Wait) -> None:
        """Do nothing, because this task did not launch the job."""

    async def expired(self) -> Outcome:
        """Return a failure, because the deadline of the task has passed before the job finished."""
        return Failure(
            self.with_problem(
                f"the job {self.job_id} did not finish within the timeout of {self.timeout:g} s"
            )
        )

    async def work(self) -> Outcome:
        """Wait for the job, and return the outcome of the task."""
        async with self.client() as dataflow:
            return await self.follow(dataflow, self.job_id)


class DataflowStopTrigger(DataflowTrigger):
    """Stops Dataflow jobs, and waits until all these jobs are finished.

    This trigger has the arguments of :class:`deferrable_ops.operators.dataflow.DataflowStopJobOperator`, with all
    durations in seconds.
    """

    classpath: ClassVar[str] = "deferrable_ops.triggers.dataflow.DataflowStopTrigger"
    arguments: ClassVar[tuple[str, ...]] = (
        *DataflowTrigger.target_arguments,
        "job_id",
        "job_name_prefix",
        "how",
        "wait_until_finished",
    )

    def __init__(
        self,
        *,
        job_id: str | None = None,
        job_name_prefix: str | None = None,
        how: Literal["cancel", "drain"] = "cancel",
        wait_until_finished: bool = True,
        **target: Any,
    ) -> None:
        super().__init__(**target)
        self.job_id = job_id
        self.job_name_prefix = job_name_prefix
        self.how = how
        self.wait_until_finished = wait_until_finished

    @property
    def cancellable(self) -> bool:
        """Return False: this task only stops jobs, so there is no external work to cancel when a user ends the task."""
        return False

    def validate(self) -> None:
        """Check the arguments of the trigger after their templates were rendered.

        :raises InputError: if an argument is invalid. The error message shows which argument is wrong and how to
            correct it.
        """
        validate_stop({name: getattr(self, name) for name in self.arguments}, all_resolved)

    async def cancel(self, wait: Wait) -> None:
        """Do nothing, because this task has no external work to cancel."""

    async def expired(self) -> Outcome:
        """Return a failure, because the deadline of the task has passed before all jobs finished."""
        return Failure(f"not all jobs finished within the timeout of {self.timeout:g} s")

    async def work(self) -> Outcome:
        """Stop the jobs, and wait until all of them are finished.

        With `job_id`, the result is one job. With `job_name_prefix`, the result is a list of jobs.
        """
        async with self.client() as dataflow:
            job_ids = await self._selected(dataflow)
            self.started = self.started or self.job_id is None
            jobs = []
            for job_id in job_ids:
                job = await dataflow.get(job_id)
                self.started = True
                jobs.append(await self._stop_job(dataflow, job))
            if self.wait_until_finished:
                jobs = [await self._finished(dataflow, job) for job in jobs]
            values = [job.as_dict() for job in jobs]
            return Success(values if self.job_id is None else values[0])

    async def _stop_job(self, dataflow: Dataflow, job: Job) -> Job:
        try:
            return await stop_job(dataflow, job, self.how)
        except DataflowRefused as refused:
            # Stopping jobs is the work that this task launches. A job that cannot be stopped in its present state may
            # be stopped later, so other refusals are repeated until the deadline.
            if refused.code in _FINAL_REFUSALS:
                raise LaunchRefused(str(refused)) from refused
            raise

    async def _selected(self, dataflow: Dataflow) -> list[str]:
        if self.job_id is not None:
            return [self.job_id]
        job_ids = (self.current.progress or {}).get(JOB_ID)
        # If an earlier run of the trigger has selected the jobs, keep its selection. Some of these jobs may be finished
        # now, so they are no longer in the list of unfinished jobs.
        if job_ids is None:
            prefix = self.job_name_prefix or ""
            job_ids = [job.id for job in await dataflow.unfinished() if job.name.startswith(prefix)]
            await self.inbox.waits.save_progress(self.current.id, {JOB_ID: job_ids})
        if not job_ids:
            self.log.warning(
                "There is no job to stop, because no unfinished job has a name that begins with %r",
                self.job_name_prefix,
            )
        return list(job_ids)

    async def _finished(self, dataflow: Dataflow, job: Job) -> Job:
        while not job.is_finished:
            with dataflow.watch(job.id, interval=self.poll_interval) as watch:
                while not job.is_finished:
                    update = await watch.next()
                    if update.problem is not None and self.note_problem(update.problem):
                        self.log.warning(
                            "The job %s (%s) does not exist any more; it counts as stopped", job.name, job.id
                        )
                        return job
                    job = update.job or job
            # The job was updated while this task waited. So stop the job that replaces it.
            if job.replaced_by is not None:
                job = await self._stop_job(dataflow, job)
        self.log.info("The job %s (%s) ended in the state %s", job.name, job.id, job.state_name)
        return job
