"""The base class of all triggers. It registers the wait of a task attempt, ends the task, and detects kills."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import jinja2
from airflow.triggers.base import BaseTrigger, TriggerEvent

from deferrable_ops.backoff import Backoff
from deferrable_ops.error_table import ErrorKind, kind_of, retry_can_help
from deferrable_ops.exceptions import DeferrableOpsError, DeploymentError, InputError, NotOwner, UnknownWait
from deferrable_ops.inbox import NO_RETRY_TIMEOUT, Attempt, Inbox, NewWait, Wait, WaitState, use_inbox
from deferrable_ops.inbox.watcher import Subscription
from deferrable_ops.outages import DEPLOYMENT, REPORT_LASTS, Follower, outages
from deferrable_ops.outcome import Failure, Outcome, Success
from deferrable_ops.supervisor_calls import Rank
from deferrable_ops.throttle import Throttle
from deferrable_ops.triggers.lifecycle import background, delivery
from deferrable_ops.triggers.lifecycle.cancellation import cancel_due_work, end_if_killed
from deferrable_ops.triggers.lifecycle.launching import ROW_LOST, Launching
from deferrable_ops.triggers.lifecycle.stored_trigger import encrypt, register_feature

if TYPE_CHECKING:
    from airflow.sdk import DAG, Context

T = TypeVar("T")

DEFAULT_TIMEOUT = 7 * 86_400.0

# A wait ends this long before Airflow's own timeout of the task: 10 % of the timeout, at most 5 s.
_MARGIN_SECONDS, _MARGIN_SHARE = 5.0, 0.1
# After a worker has deferred its task, the worker's process exits up to 5 s later ([workers] min_heartbeat_interval).
# If the task is queued again before the scheduler has handled this exit, the scheduler fails the task (airflow#66374).
# So a trigger waits until 8 s after its own start before it resumes a task on a worker.
RESUME_AFTER_DEFER = 8.0
# A task that ends in the triggerer is not queued again. So it may end once the worker has deferred it.
_END_AFTER_DEFER = 2.0
# Limits the memory that thousands of triggers need when they start together. The process would never free this memory.
_registering = Throttle(128)
_ENDED_BY_AIRFLOW = (WaitState.KILLED, WaitState.SUPERSEDED)


class TaskTrigger(Launching, BaseTrigger):
    """Base class of all triggers. A trigger stores its state in the inbox, so Airflow can restart the trigger.
    Airflow may even run two copies of a trigger at the same time.

    A subclass implements :meth:`wait` and :meth:`cancel`. A subclass also implements :meth:`expired` if the task must
    not fail when its deadline passes. In `arguments`, a subclass lists the names of the arguments that it adds.

    :param timeout: seconds between the first run of the trigger and the deadline of the task's wait.
    :param attempt: the fields of the :class:`~deferrable_ops.inbox.Attempt` if a worker deferred the task. If the
        scheduler deferred the task, `attempt` is None, and the trigger reads these fields from the task instance that
        Airflow sets on the trigger.
    :param ends_on_worker: a dict with the reasons why the task must end on a worker. The keys are the outcomes
        ``success``, ``failure``, ``skip``, and ``final_failure`` for a failure that must not be retried.
    :param do_xcom_push: whether the result of a successful wait becomes an XCom.
    :param _older: arguments that another version of the library has stored. The trigger accepts and ignores these
        arguments. If the trigger raised an error for an unknown argument, Airflow could not create the stored trigger,
        and the triggerer process would exit.
    """

    feature: ClassVar[str]
    classpath: ClassVar[str]
    arguments: ClassVar[tuple[str, ...]]

    recheck_previous_attempts_every: ClassVar[float] = 1.0
    """Seconds between two checks whether the work of earlier attempts is cancelled."""

    airflow_cancels_within: ClassVar[float] = 60.0
    """The trigger of an ended task waits at most this many seconds until Airflow cancels the trigger."""

    first_retry_pause: ClassVar[float] = 1.0
    """The longest pause before the first retry after a temporary error, in seconds."""

    longest_retry_pause: ClassVar[float] = 60.0
    """The longest pause before :meth:`wait` is called again after a temporary error, in seconds."""

    # Slots save 1.3 kB per wait: the instances of a class share the keys of their attributes only if an instance has at
    # most 29 attributes outside of slots. Airflow sets 7 of them.
    __slots__ = ("_backoff", "_outages", "attempt", "changes", "current", "inbox", "started", "timeout")

    started: bool
    """Whether the task has launched or read anything. If True, a failed read is retried and does not end the task. A
    subclass sets `started`. :meth:`run` also sets `started` if an earlier run of the trigger registered the wait.
    """

    # These attributes are None except during run().
    inbox: Inbox
    changes: Subscription
    current: Wait
    _outages: Follower

    # The pauses after errors. None: there was no error.
    _backoff: Backoff | None

    # The reason why the templates could not be rendered.
    _template_error: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "feature" in cls.__dict__:
            register_feature(cls.feature)

    def __init__(
        self,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        attempt: dict[str, Any] | None = None,
        ends_on_worker: dict[str, str] | None = None,
        do_xcom_push: bool = True,
        **_older: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.timeout, self.attempt = timeout, attempt
        self.ends_on_worker, self.do_xcom_push = ends_on_worker, do_xcom_push
        self.inbox = self.changes = self.current = self._outages = cast("Any", None)
        self.started, self._backoff = False, None

    @abstractmethod
    async def wait(self) -> Outcome:
        """Do the work of the task, and return the outcome of the task."""

    def validate(self) -> None:
        """Check the rendered arguments.

        :raises InputError: if an argument is invalid. The error message shows which argument is wrong and how to
            correct it.
        """

    @abstractmethod
    async def cancel(self, wait: Wait) -> None:
        """Cancel the external work of a wait that has ended without a result. A second call must do no harm.

        The wait was ended by a user, was replaced by the wait of a newer attempt, or has passed its deadline.
        """

    async def expired(self) -> Outcome:
        """Return the outcome of a wait whose deadline has passed."""
        return Failure(f"no result within the timeout of {self.timeout:g} s")

    @property
    def cancellable(self) -> bool:
        """Whether there is external work that :meth:`cancel` would cancel."""
        return True

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the external systems on which the wait depends.

        :mod:`deferrable_ops.outages` records the outages of the systems under these names.
        """
        return ()

    @property
    def heartbeats_within(self) -> float | None:
        """The number of seconds without a heartbeat after which the wait fails; None if no heartbeats are expected."""
        return None

    @property
    def xcoms_to_clear(self) -> tuple[str, ...]:
        """The keys of XComs that an earlier attempt of the task may have set, and that Airflow does not clear."""
        return (delivery.RETURN_VALUE,)

    @property
    def expected(self) -> dict[str, Any]:
        """The data that the HTTP endpoint needs to evaluate a callback, as a JSON object."""
        return {}

    @classmethod
    @cache
    def defaults(cls) -> dict[str, Any]:
        """Return the default values of the trigger's arguments.

        Never change a default, because Airflow does not store an argument that has its default value. A new default
        would also change the triggers that are already stored.
        """
        inits = [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]
        parameters = [one for init in reversed(inits[:-1]) for one in signature(init).parameters.values()]
        return {one.name: one.default for one in parameters if one.default is not Parameter.empty}

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the classpath and the kwargs from which Airflow creates this trigger."""
        names = ("timeout", "attempt", "ends_on_worker", "do_xcom_push", *self.arguments)
        return self.classpath, {name: getattr(self, name) for name in names}

    @property
    def log(self) -> Any:
        """The logger of the task.

        All triggers of one class share this logger. Airflow writes each message to the log of the task whose
        trigger logs the message.
        """
        return self.logger()

    def __repr__(self) -> str:
        # Airflow logs triggers, and rendered arguments may contain secrets.
        return f"<{type(self).__name__}>"

    def get_template_env(self, dag: DAG | None = None) -> jinja2.Environment:
        """Return Airflow's template environment, changed so that an undefined name is an error, as on a worker."""
        environment: jinja2.Environment = super().get_template_env(dag)
        environment.undefined = jinja2.StrictUndefined
        return environment

    def render_template_fields(self, context: Context, jinja_env: jinja2.Environment | None = None) -> None:
        """Render the templates. If rendering fails, keep the error, so that :meth:`run` can fail the task.

        If this method raised the rendering error, Airflow would start a worker for the task.
        """
        try:
            super().render_template_fields(context, jinja_env)
        except Exception as error:
            self._template_error = f"{type(error).__name__}: {error}"

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Do the task's work, then yield one event, which ends the task or resumes the task on a worker."""
        # Thousands of triggers wait here. Each further coroutine between run() and wait() would need 260 bytes.
        started_at = time.monotonic()
        try:
            attempt = await self._until_deployed(self._prepare_attempt)
            async with use_inbox(retry_timeout=NO_RETRY_TIMEOUT) as self.inbox:
                with (
                    self.inbox.watcher.subscribe(attempt.wait_id) as self.changes,
                    outages.follow(self.sources, self.log) as self._outages,
                ):
                    await self._until_deployed(partial(self._register, attempt))
                    outcome = None
                    while outcome is None:
                        try:
                            outcome = await (
                                self.wait()
                                if self.current.state is WaitState.WAITING
                                else self.wait_until_settled()
                            )
                        except (Exception, SystemExit) as error:
                            outcome = await self._failed_or_retried(error)
                    outcome = await self._settle(outcome)
        except (Exception, SystemExit) as error:
            # An uncaught SystemExit would end the triggerer process, and again after each restart of the process.
            outcome = self._failed_by(error)
        if self.task_instance is not None and self.current is not None:
            await self._leave_to_airflow()
        await self.before_end(outcome)
        event = await delivery.event_for(self._ending_task(), outcome)
        if self.attempt is not None and self.task_instance is not None:
            earliest = RESUME_AFTER_DEFER if type(event) is TriggerEvent else _END_AFTER_DEFER
            await asyncio.sleep(earliest - (time.monotonic() - started_at))
        yield event

    async def on_kill(self) -> None:
        """Start a check in the background. If a user ended the task, the check cancels the task's external work.

        Airflow also calls this method when it moves the trigger to another triggerer (airflow#73454). The method must
        return within about a second.
        """
        background.detach(end_if_killed(self.identify()))

    def identify(self) -> Attempt:
        """Return the task attempt that this trigger belongs to.

        :raises DeferrableOpsError: if neither the trigger's arguments nor Airflow identify the attempt.
        """
        if self.attempt is not None:
            return Attempt(**self.attempt)
        ti = self.task_instance
        if ti is None:
            raise DeferrableOpsError("the trigger needs a task instance, or the argument attempt=")
        logical_date = ti.get_template_context().get("logical_date") if self.task else None
        return Attempt.of(ti, logical_date)

    async def wait_until_settled(self) -> Outcome:
        """Wait until the task's wait has ended in the inbox, and return the outcome of this wait."""
        while self.current.state is WaitState.WAITING:
            await self.changes.next_change()
            if await self.take_change():
                await self.on_wait_updated()
        if self.current.outcome is not None:
            return self.current.outcome
        if self.current.state is WaitState.EXPIRED:
            return self._with_outage(await self.expired())
        return Failure(f"a user or a newer attempt has ended this attempt (wait: {self.current.state})")

    async def on_wait_updated(self) -> None:
        """Handle one change of the wait in the inbox, for example new progress or an outcome."""

    async def before_end(self, outcome: Outcome) -> None:
        """Do what other tasks need before this task ends with its outcome. Must not raise an error."""

    async def push_xcom(self, key: str, value: Any, rank: Rank = Rank.PROGRESS) -> None:
        """Set an XCom of the task. Without a triggerer, as in ``dag.test()`` and in tests, do nothing."""
        if self.task_instance is not None:
            await delivery.push_xcom(self.current.attempt, key, value, rank)

    async def race_with_settlement(self, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Return the outcome of `work`.

        If the task's wait ends in the inbox before `work` ends, cancel `work` and return the outcome of the wait.
        """
        working = asyncio.create_task(self._safely(work))
        settling = asyncio.create_task(self._safely(self.wait_until_settled()))
        try:
            await asyncio.wait([settling, working], return_when=asyncio.FIRST_COMPLETED)
            return (settling if settling.done() else working).result()
        finally:
            for task in (settling, working):
                task.cancel()
            await asyncio.gather(settling, working, return_exceptions=True)

    async def stop_previous_attempts(self) -> None:
        """Cancel the external work of all other attempts of the task, and return when all this work is cancelled.

        Await this method before you launch work that must not run twice at the same time. A failed cancellation is
        retried every minute until the wait's deadline.
        """
        pause = 0.0
        while wait_ids := await self.inbox.cancellations.requeue_other_attempts(self.current.id):
            if not pause:
                self.log.info(
                    "Before this attempt starts its work, the work of earlier attempts is cancelled (waits: %s)",
                    ", ".join(wait_ids),
                )
            await asyncio.sleep(pause)
            await self.inbox.owner.wait(self.log, cancel=True)
            for wait_id in wait_ids:
                await cancel_due_work(self.inbox, wait_id)
            pause = self.recheck_previous_attempts_every

    def must_cancel_work(self, outcome: Outcome) -> bool:
        """Return whether the task's external work must be cancelled because the task ended with this outcome.

        Return False if the task failed only because the state of the external work could not be read.
        """
        return False

    def new_wait(self, attempt: Attempt) -> NewWait:
        """Return the data with which an attempt's wait is registered in the inbox."""
        timeout, latest = self.timeout, None
        # Airflow's own deadline, measured with the scheduler's clock.
        timeout_after = getattr(self, "timeout_after", None)
        if timeout_after is not None:
            margin = min(_MARGIN_SECONDS, _MARGIN_SHARE * timeout)
            timeout, latest = timeout - margin, timeout_after.timestamp() - margin
        return NewWait(
            attempt=attempt,
            feature=self.feature,
            timeout=timeout,
            latest_deadline=latest,
            time_left=0.0 if latest is None else latest - time.time(),
            heartbeat_timeout=self.heartbeats_within,
            expected=self.expected,
            trigger=encrypt(self, attempt) if self.cancellable else None,
            sources=self.sources,
        )

    async def _prepare_attempt(self) -> Attempt:
        attempt = self.identify()
        if self.task_instance is not None:
            background.start()
            # If a worker has started the task, it has already cleared the task's XComs.
            if attempt.try_number > 1 and self.attempt is None:
                await delivery.clear_xcoms(attempt, self.xcoms_to_clear, self.log)
        if self._template_error is not None:
            raise InputError(f"a template could not be rendered ({self._template_error}); correct it")
        self.validate()
        return attempt

    async def _register(self, attempt: Attempt) -> None:
        while True:
            try:
                with _registering.slot() as granted:
                    await granted
                    self.current = await self.inbox.waits.register(self.new_wait(attempt))
                break
            except NotOwner:
                await self.inbox.owner.wait(self.log)
        self.started = self.started or not self.current.is_new
        if self.inbox.hosts.problem is not None:
            self.log.error("%s", self.inbox.hosts.problem)

    async def _register_again(self) -> bool:
        """Register the wait again if its row is gone from the inbox. Return whether the row was gone."""
        await self._until_deployed(partial(self._register, self.current.attempt))
        if self.current.is_new:
            self._row_was_lost = True
            self.log.error(ROW_LOST, self.current.id)
        return self.current.is_new

    async def _settle(self, outcome: Outcome) -> Outcome:
        # The endpoint or the watcher may have settled the wait already.
        if self.current.outcome is None:
            settle = partial(
                self.inbox.waits.settle, self.current.id, outcome, stop_work=self.must_cancel_work(outcome)
            )
            try:
                self.current = await settle()
            except UnknownWait:
                await self._register_again()
                self.current = await settle()
        if self.current.cancel == "due":
            background.detach(background.cancel_due(self.current.id))
        return self.current.outcome or outcome

    async def _leave_to_airflow(self) -> None:
        # After a kill, the inbox may be updated before Airflow cancels this trigger. An event would come too late for
        # the killed task. On SQLite, the event could even end another task, because Airflow finds the task by the
        # trigger's id, and SQLite reuses ids. So wait until Airflow cancels this trigger.
        if self.current.state in _ENDED_BY_AIRFLOW:
            await asyncio.sleep(self.airflow_cancels_within)

    def _ending_task(self) -> delivery.EndingTask:
        return delivery.EndingTask(
            wait=self.current,
            in_triggerer=self.task_instance is not None,
            worker_reasons=self.ends_on_worker or {},
            do_xcom_push=self.do_xcom_push,
            log=self.log,
        )

    async def _safely(self, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        try:
            return await work
        except SystemExit as error:
            # An asyncio task that raises SystemExit ends the triggerer process.
            return self._failed_by(error)

    async def _failed_or_retried(self, error: BaseException) -> Outcome | None:
        """Return the failure that an error causes.

        If the error may be temporary, pause and return None, so that :meth:`wait` is called again.
        """
        if isinstance(error, UnknownWait) and await self._register_again():
            return None
        is_over = self.current.state is not WaitState.WAITING
        if is_over or kind_of(error, started=self.started) is ErrorKind.TASK:
            return self._failed_by(error)
        if self._backoff is None or time.monotonic() - self._backoff.until > self.longest_retry_pause:
            self._backoff = self._new_backoff()
        pause = self._backoff.failed()
        self._report_outage(error, pause)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                while self.current.state is WaitState.WAITING:
                    await self.changes.next_change()
                    self.current = self.changes.take() or self.current
        if self.current.state is WaitState.WAITING:
            # The next run resumes from the stored progress, like a run after a restart of the triggerer.
            try:
                self.current = await self.inbox.waits.get(self.current.id)
            except UnknownWait:
                await self._register_again()
        return None

    def _report_outage(self, error: BaseException, pause: float) -> None:
        if isinstance(error, DeploymentError):
            source = DEPLOYMENT
        else:
            source = self.sources[0] if self.sources else f"the system of {self.feature}"
        # The next run of wait() may fail late, after a timeout of a minute.
        outages.failed(source, str(error) or type(error).__name__, lasts=pause + REPORT_LASTS)

    def _new_backoff(self) -> Backoff:
        return Backoff(first_pause=self.first_retry_pause, longest_pause=self.longest_retry_pause)

    async def _until_deployed(self, step: Callable[[], Awaitable[T]]) -> T:
        """Return the step's result. As long as the step raises DeploymentError, repeat the step."""
        backoff = self._new_backoff()
        while True:
            try:
                result = await step()
                if backoff.failures:
                    outages.recovered(DEPLOYMENT)
                return result
            except DeploymentError as error:
                pause = backoff.failed()
                if backoff.failures == 1:
                    self.log.warning("%s; retrying until the deployment is fixed", error)
                self._report_outage(error, pause)
            await asyncio.sleep(pause)

    def _with_outage(self, outcome: Outcome) -> Outcome:
        """Add the longest outage to the reason of a timeout."""
        problem = self._outages.describe(self.current.deadline - self.current.created_at)
        if problem is None or isinstance(outcome, Success):
            return outcome
        return replace(outcome, reason=f"{outcome.reason}; {problem}")

    def _failed_by(self, error: BaseException) -> Failure:
        if isinstance(error, DeferrableOpsError):
            return Failure(str(error), retryable=retry_can_help(error))
        self.log.error("The task fails, because its trigger raised this error", exc_info=error)
        return Failure(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
