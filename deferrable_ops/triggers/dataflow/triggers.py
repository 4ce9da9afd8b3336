"""The Dataflow waits: launch a job and follow it, follow one that exists, or stop some."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Final, Literal, cast

from deferrable_ops.inbox import Wait
from deferrable_ops.inbox.waits.launches import Claim, ClaimLost
from deferrable_ops.outcome import Failure, Outcome, Success
from deferrable_ops.triggers.dataflow.arguments import (
    known_now,
    validate_launch,
    validate_sensor,
    validate_stop,
)
from deferrable_ops.triggers.dataflow.follow import JOB_ID, FollowingTrigger, PlacedTrigger
from deferrable_ops.triggers.dataflow.launch import Launch, find_launched, stop_job
from deferrable_ops.triggers.dataflow.request import Kind, build_request, job_name, name_prefix
from deferrable_ops.upstreams.dataflow.client import Dataflow, Job, use_dataflow

_ASKED: Final = "asked"  # of a wait's progress: a launch may have been sent


class DataflowLaunchTrigger(FollowingTrigger):
    """Launches a job once, and follows it.

    The arguments are those of :class:`deferrable_ops.operators.dataflow.DataflowFlexTemplateOperator`, durations in
    seconds.

    :param kind: "flex" or "classic": which API launches the template.
    :param when_killed: the operator's `on_kill`; a trigger's ``on_kill`` is a method.
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
        """Whether the job is stopped with its task."""
        return self.when_killed != "leave"

    def validate(self) -> None:
        """Check the rendered arguments.

        :raises InputError: one of them is wrong; the message names it and the fix.
        """
        arguments = {name: getattr(self, name) for name in self.arguments}
        validate_launch(self.kind, arguments, self.identify().task_id, known_now)

    async def wait(self) -> Outcome:
        """Launch the job unless that was done, and return what comes of it."""
        return await self.race_with_settlement(self._launch_and_follow())

    async def cancel(self, wait: Wait) -> None:
        """Cancel or drain the job, if it may have been launched and still runs."""
        asked = wait.launched_at is not None or (wait.progress or {}).get(_ASKED)
        if not self.cancellable or not asked:
            return
        how = cast("Literal['cancel', 'drain']", self.when_killed)
        async with use_dataflow(self.place) as dataflow:
            job = await find_launched(dataflow, self._name(), wait)
            if job is not None:
                await stop_job(dataflow, job, how)

    async def expired(self) -> Outcome:
        """Return that the job took too long."""
        job = f"the job {self._job_id}" if self._job_id else "the job"
        stopped = (
            f"it is stopped (on_kill={self.when_killed!r})" if self.cancellable else "it is left to itself"
        )
        return Failure(f"{job} did not come to its end within the timeout of {self.timeout:g} s; {stopped}")

    def must_cancel_work(self, outcome: Outcome) -> bool:
        """Return whether the job may run on beside the one that a retry launches."""
        return isinstance(outcome, Failure) and not self._ended

    async def _launch_and_follow(self) -> Outcome:
        async with self.client() as dataflow:
            job_id = await self._launched(dataflow)
            if job_id is None:
                return Failure("the wait ended before its job was launched")
            if self.wait_until_finished:
                return await self.follow(dataflow, job_id)
            self._remember()
            await self._show(job_id)
            return Success((await dataflow.get(job_id)).as_dict())

    async def _launched(self, dataflow: Dataflow) -> str | None:
        """Return the id of this wait's job, launched by this run or an earlier one; None when the wait is over."""
        if self.current.launched_at is None:
            await self.stop_previous_attempts()
        while self.current.launched_at is None:
            try:
                async with self.inbox.launches.claim(self.current.id) as claim:
                    if claim is not None:
                        launch = self._launch(dataflow)
                        check = partial(self._note_and_check, claim)
                        job = await launch.until_accepted(check, self.launch_timeout)
                        await claim.record({"job_id": job.id, "name": job.name})
            except ClaimLost:
                self.log.info("Another process launches the job")
            launched = await self.inbox.waits.get(self.current.id)
            if claim is None and launched.launched_at is None:
                return None
            self.current = launched
        return cast("str", self.current.launch_answer["job_id"])

    async def _note_and_check(self, claim: Claim) -> float:
        # In this order: what is not noted was not sent, so that nobody looks for it when the wait is to be stopped.
        await self.inbox.waits.save_progress(self.current.id, {_ASKED: True})
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
        return Launch(dataflow, self.kind, request, name, wait_id, self.log)

    def _name(self) -> str:
        attempt = self.identify()
        return job_name(str(name_prefix(self.job_name, self.body, attempt.task_id)), attempt.wait_id)


class DataflowJobTrigger(FollowingTrigger):
    """Follows a job that exists.

    The arguments are those of :class:`deferrable_ops.operators.dataflow.DataflowJobSensor`, durations in seconds.
    """

    classpath: ClassVar[str] = "deferrable_ops.triggers.dataflow.DataflowJobTrigger"
    arguments: ClassVar[tuple[str, ...]] = (*FollowingTrigger.job_arguments, "job_id")

    def __init__(self, *, job_id: str = "", **following: Any) -> None:
        super().__init__(**following)
        self.job_id = job_id

    @property
    def cancellable(self) -> bool:
        """Whether the job is stopped with its task: it is not this task's."""
        return False

    def validate(self) -> None:
        """Check the rendered arguments.

        :raises InputError: one of them is wrong; the message names it and the fix.
        """
        validate_sensor({name: getattr(self, name) for name in self.arguments}, known_now)

    async def wait(self) -> Outcome:
        """Return what comes of the job."""
        return await self.race_with_settlement(self._follow())

    async def cancel(self, wait: Wait) -> None:
        """Stop nothing: the job is not this task's."""

    async def expired(self) -> Outcome:
        """Return that the job took too long."""
        return Failure(
            f"the job {self.job_id} did not come to its end within the timeout of {self.timeout:g} s"
        )

    async def _follow(self) -> Outcome:
        async with self.client() as dataflow:
            return await self.follow(dataflow, self.job_id)


class DataflowStopTrigger(PlacedTrigger):
    """Stops jobs, and waits until they have ended.

    The arguments are those of :class:`deferrable_ops.operators.dataflow.DataflowStopJobOperator`, durations in
    seconds.
    """

    classpath: ClassVar[str] = "deferrable_ops.triggers.dataflow.DataflowStopTrigger"
    arguments: ClassVar[tuple[str, ...]] = (
        *PlacedTrigger.place_arguments,
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
        **place: Any,
    ) -> None:
        super().__init__(**place)
        self.job_id = job_id
        self.job_name_prefix = job_name_prefix
        self.how = how
        self.wait_until_finished = wait_until_finished

    @property
    def cancellable(self) -> bool:
        """Whether there is anything to stop: to stop jobs is this task's work itself."""
        return False

    def validate(self) -> None:
        """Check the rendered arguments.

        :raises InputError: one of them is wrong; the message names it and the fix.
        """
        validate_stop({name: getattr(self, name) for name in self.arguments}, known_now)

    async def wait(self) -> Outcome:
        """Stop the jobs and return them as they ended: one for a job's id, a list for a prefix."""
        return await self.race_with_settlement(self._stop())

    async def cancel(self, wait: Wait) -> None:
        """Stop nothing more."""

    async def expired(self) -> Outcome:
        """Return that the jobs took too long."""
        return Failure(f"not all jobs had ended within the timeout of {self.timeout:g} s")

    async def _stop(self) -> Outcome:
        async with self.client() as dataflow:
            job_ids = await self._chosen(dataflow)
            jobs = [await stop_job(dataflow, await dataflow.get(job_id), self.how) for job_id in job_ids]
            if self.wait_until_finished:
                jobs = [await self._ended(dataflow, job) for job in jobs]
            shown = [job.as_dict() for job in jobs]
            return Success(shown if self.job_id is None else shown[0])

    async def _chosen(self, dataflow: Dataflow) -> list[str]:
        if self.job_id is not None:
            return [self.job_id]
        noted = (self.current.progress or {}).get(JOB_ID)
        # What an earlier run has chosen stays: the list holds no job any more that has ended since.
        if noted is None:
            prefix = self.job_name_prefix or ""
            noted = [job.id for job in await dataflow.active() if job.name.startswith(prefix)]
            await self.inbox.waits.save_progress(self.current.id, {JOB_ID: noted})
        if not noted:
            self.log.warning("No active job has a name that begins with %r", self.job_name_prefix)
        return list(noted)

    async def _ended(self, dataflow: Dataflow, job: Job) -> Job:
        while not job.is_finished:
            with dataflow.watch(job.id, interval=self.poll_interval) as watch:
                while not job.is_finished:
                    job = (await watch.next()).job or job
            if job.replaced_by is not None:  # an update was under way: what came of it is stopped instead
                job = await stop_job(dataflow, job, self.how)
        self.log.info("The job %s (%s) ended in %s", job.name, job.id, job.state_name)
        return job
