"""The Dataflow triggers: launch a job and wait for it, wait for an existing job, or stop jobs."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Final, Literal, cast

from deferrable_ops.exceptions import DataflowRefused, LaunchRefused
from deferrable_ops.inbox import Wait, WaitState
from deferrable_ops.inbox.waits.launches import Claim, ClaimLost
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
from deferrable_ops.triggers.dataflow.request import Kind, build_request, job_name, name_prefix
from deferrable_ops.upstreams.dataflow.client import Dataflow, Job, use_dataflow
from deferrable_ops.upstreams.dataflow.jobs import CANCELLING, DRAINING, FINISHED, UPDATED, state_name

# A key of the wait's progress. It is set before a launch request is sent.
_LAUNCH_SENT: Final = "asked"
_ENDED: Final = frozenset(map(state_name, FINISHED - {UPDATED}))


class DataflowLaunchTrigger(FollowingTrigger):
    """Launches a Dataflow job once, and waits for the job.

    This trigger has the arguments of :class:`deferrable_ops.operators.dataflow.DataflowFlexTemplateOperator`, with all
    durations in seconds.

    :param kind: the kind of template, "flex" or "classic".
    :param when_killed: the operator's argument `on_kill`, under another name, because ``on_kill`` is a method of
        triggers.
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

    @property
    def cancellable(self) -> bool:
        """Whether the job is stopped when a user ends the task."""
        return self.when_killed != "leave"

    def validate(self) -> None:
        """Check the rendered arguments.

        :raises InputError: if an argument is invalid. The error message shows which argument is wrong and how to
            correct it.
        """
        arguments = {name: getattr(self, name) for name in self.arguments}
        validate_launch(self.kind, arguments, self.identify().task_id, all_resolved)

    async def cancel(self, wait: Wait) -> None:
        """Cancel or drain the job, if the job may have been launched and is not finished."""
        may_be_launched = wait.launched_at is not None or (wait.progress or {}).get(_LAUNCH_SENT)
        if not self.cancellable or not may_be_launched:
            return
        how = cast("Literal['cancel', 'drain']", self.when_killed)
        async with use_dataflow(self.target) as dataflow:
            job = await find_launched(dataflow, self._name(), wait, timings=self.launch_timings)
            if job is not None:
                await stop_job(dataflow, job, how)

    async def expired(self) -> Outcome:
        """Return a failure, because the job did not finish before the deadline."""
        job = f"the job {self._job_id}" if self._job_id else "the job"
        stopped = f"it is stopped (on_kill={self.when_killed!r})" if self.cancellable else "it keeps running"
        reason = f"{job} did not finish within the timeout of {self.timeout:g} s; {stopped}"
        return Failure(self.with_problem(reason))

    def must_cancel_work(self, outcome: Outcome) -> bool:
        """Return True if the task failed before a launch of the job was confirmed: Dataflow may have created the job
        nevertheless, and such a job must be cancelled.

        Return False if the launch was confirmed. If the task then failed because the job's state could not be read,
        the next attempt of the task continues with the same job.
        """
        return isinstance(outcome, Failure) and self.current.launched_at is None

    async def work(self) -> Outcome:
        """Launch the job, unless it was launched already. Then wait for the job, and return the outcome of the job."""
        unread = None
        if self.current.launched_at is None:
            unread = await self._previous_attempt_with_job()
            # A job was launched for this task, so no failed read makes the task fail.
            self.started = self.started or unread is not None
        async with self.client() as dataflow:
            job_id = await self._launched(dataflow, unread)
            if job_id is None:
                return Failure("the wait ended before the job was launched")
            if self.wait_until_finished:
                return await self.follow(dataflow, job_id)
            self._load_progress()
            await self._publish_job_id(job_id)
            return Success((await dataflow.get(job_id)).as_dict())

    async def _launched(self, dataflow: Dataflow, unread: Wait | None) -> str | None:
        """Launch the job, unless an earlier run of this trigger has launched it. Return the job's id.

        Return None if the task's wait is already over.

        :param unread: the earlier attempt of the task whose job may still run.
        """
        if self.current.launched_at is None:
            await self.stop_previous_attempts()
            if unread is not None:
                await self._adopt_job_of(unread, dataflow)
        while self.current.launched_at is None:
            try:
                async with self.inbox.launches.claim(self.current.id) as claim:
                    if claim is not None:
                        launch = self._launch(dataflow)
                        check = partial(self._save_and_check, claim)
                        sent = bool((self.current.progress or {}).get(_LAUNCH_SENT))
                        job = await launch.until_accepted(check, self.launch_timeout, sent=sent)
                        await claim.record({"job_id": job.id, "name": job.name})
            except ClaimLost:
                self.log.info("Another process is launching the job of this task")
            launched = await self.inbox.waits.get(self.current.id)
            if claim is None and launched.launched_at is None:
                return None
            self.current = launched
        self.started = True
        return cast("str", self.current.launch_answer["job_id"])

    async def _previous_attempt_with_job(self) -> Wait | None:
        """Return the last attempt that launched a job, if it failed because the state of its job could not be read;
        otherwise None.
        """
        previous = await self.inbox.waits.previous_attempt(self.current.id)
        while previous is not None and previous.state is WaitState.FAILED and previous.cancel is None:
            if previous.launch_answer is not None:
                has_ended = (previous.progress or {}).get("state") in _ENDED
                return None if has_ended else previous
            # This attempt failed before it launched or adopted a job.
            earlier = await self.inbox.waits.previous_attempt(previous.id)
            previous = earlier if earlier and earlier.created_at < previous.created_at else None
        return None

    async def _adopt_job_of(self, previous: Wait, dataflow: Dataflow) -> None:
        """Continue with the job of an earlier attempt, if the job still runs, or cannot be read now either.

        Otherwise this attempt would launch a second job beside the first one.
        """
        # The job that runs now may have replaced the job that was launched.
        job_id = (previous.progress or {}).get(JOB_ID) or previous.launch_answer["job_id"]
        try:
            job = await get_unless_gone(dataflow, job_id, timings=self.launch_timings)
        except DataflowRefused as refused:
            self.log.warning("%s; waiting for this job, because it may still run", refused)
        else:
            if job is None or job.state in (FINISHED - {UPDATED}) | {CANCELLING, DRAINING}:
                return
        try:
            async with self.inbox.launches.claim(self.current.id) as claim:
                if claim is not None:
                    await claim.record({"job_id": job_id, "name": previous.launch_answer.get("name", "")})
                    self.log.info(
                        "Adopted the job %s, which an earlier attempt launched and could not read", job_id
                    )
        except ClaimLost:
            self.log.info("Another process is launching the job of this task")
        self.current = await self.inbox.waits.get(self.current.id)

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
            project_id=self.project_id,
            region=self.region,
            body=self.body or {},
            name=name,
            labels=self.labels,
            wait_id=wait_id,
        )
        return Launch(dataflow, self.kind, request, name, wait_id, self.log, timings=self.launch_timings)

    def _name(self) -> str:
        attempt = self.identify()
        return job_name(str(name_prefix(self.job_name, self.body, attempt.task_id)), attempt.wait_id)


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
        """Check the rendered arguments.

        :raises InputError: if an argument is invalid. The error message shows which argument is wrong and how to
            correct it.
        """
        validate_sensor({name: getattr(self, name) for name in self.arguments}, all_resolved)

    async def cancel(self, wait: Wait) -> None:
        """Do nothing, because this task did not launch the job."""

    async def expired(self) -> Outcome:
        """Return a failure, because the job did not finish before the deadline."""
        return Failure(
            self.with_problem(
                f"the job {self.job_id} did not finish within the timeout of {self.timeout:g} s"
            )
        )

    async def work(self) -> Outcome:
        """Wait for the job and return its outcome."""
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
        """Check the rendered arguments.

        :raises InputError: if an argument is invalid. The error message shows which argument is wrong and how to
            correct it.
        """
        validate_stop({name: getattr(self, name) for name in self.arguments}, all_resolved)

    async def cancel(self, wait: Wait) -> None:
        """Do nothing, because this task has no external work to cancel."""

    async def expired(self) -> Outcome:
        """Return a failure, because not all jobs finished before the deadline."""
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
            # Stopping jobs is the work that this task launches.
            raise LaunchRefused(str(refused)) from refused

    async def _selected(self, dataflow: Dataflow) -> list[str]:
        if self.job_id is not None:
            return [self.job_id]
        job_ids = (self.current.progress or {}).get(JOB_ID)
        # If an earlier run of the trigger has selected the jobs, keep its selection. Some of these jobs may be finished
        # now, so they are no longer in the list of active jobs.
        if job_ids is None:
            prefix = self.job_name_prefix or ""
            job_ids = [job.id for job in await dataflow.active() if job.name.startswith(prefix)]
            await self.inbox.waits.save_progress(self.current.id, {JOB_ID: job_ids})
        if not job_ids:
            self.log.warning("There is no active job whose name begins with %r", self.job_name_prefix)
        return list(job_ids)

    async def _finished(self, dataflow: Dataflow, job: Job) -> Job:
        while not job.is_finished:
            with dataflow.watch(job.id, interval=self.poll_interval) as watch:
                while not job.is_finished:
                    update = await watch.next()
                    if update.problem is not None and self.note_problem(update.problem):
                        self.log.warning("The job %s (%s) does not exist any more", job.name, job.id)
                        return job
                    job = update.job or job
            # The job was updated while this task waited. So stop the job that replaces it.
            if job.replaced_by is not None:
                job = await self._stop_job(dataflow, job)
        self.log.info("The job %s (%s) ended in the state %s", job.name, job.id, job.state_name)
        return job
