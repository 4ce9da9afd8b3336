"""What every trigger of the library does around its feature's work: identity, deadline, outcome, ways out, kills."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, ClassVar, cast

import jinja2
from airflow.triggers.base import BaseTrigger, TriggerEvent

from deferrable_ops.exceptions import DeferrableOpsError, InputError
from deferrable_ops.inbox import NO_RETRY_TIMEOUT, Attempt, Inbox, NewWait, Wait, WaitState, use_inbox
from deferrable_ops.inbox.watcher import Subscription
from deferrable_ops.outcome import Failure, Outcome
from deferrable_ops.triggers.lifecycle import background, delivery
from deferrable_ops.triggers.lifecycle.cancellation import end_if_killed, stop_due_work
from deferrable_ops.triggers.lifecycle.stored_trigger import seal
from deferrable_ops.triggers.lifecycle.throttle import Turns

if TYPE_CHECKING:
    from airflow.sdk import DAG, Context

DEFAULT_TIMEOUT = 7 * 86_400.0

_MARGIN_SECONDS, _MARGIN_SHARE = 5.0, 0.1
_ASK_AGAIN_AFTER = 1.0
# A worker that has deferred its task leaves when its supervisor looks next, in up to 5 s ([workers]
# min_heartbeat_interval). A task that is queued again before the scheduler has heard of that is failed by it
# (airflow#66374). One that ends in the triggerer meets nobody but the worker that still says that it is deferred.
RESUME_AFTER_DEFER = 8.0
_END_AFTER_DEFER = 2.0
_registering = Turns(128)  # of thousands that start together: the memory for that would stay the process's
_AIRFLOW_CANCELS_WITHIN = 60.0
_ENDED_BY_AIRFLOW = (WaitState.KILLED, WaitState.SUPERSEDED)


class TaskTrigger(BaseTrigger):
    """A trigger that holds nothing: killed anywhere, or run twice at once, it comes to the same outcome.

    A feature writes :meth:`wait`, :meth:`cancel` and, where a deadline is no failure, :meth:`expired`; it names its
    own arguments in `arguments`.

    :param timeout: seconds from the first run until the deadline.
    :param attempt: which attempt of which task this is, where a worker deferred it; None where the scheduler did,
        because Airflow tells then.
    :param ends_on_worker: why the task must end on a worker, by what happens: ``success``, ``failure``,
        ``final_failure`` (one that must not be retried) and ``skip``.
    :param do_xcom_push: whether the value becomes an XCom.
    :param _older: arguments that an older version persisted. They are dropped, because Airflow's triggerer does not
        survive a trigger that cannot be made again.
    """

    feature: ClassVar[str]
    classpath: ClassVar[str]
    arguments: ClassVar[tuple[str, ...]]

    # Set while run() runs; before that they are None.
    inbox: Inbox
    changes: Subscription
    current: Wait

    _not_rendered: str | None = None  # why the templates could not be

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
        self.timeout = timeout
        self.attempt = attempt
        self.ends_on_worker = ends_on_worker
        self.do_xcom_push = do_xcom_push
        # Python 3.11 gives an instance whose attributes come later a dictionary of its own: 1.3 kB a wait.
        self.inbox = self.changes = self.current = cast("Any", None)
        self._inbox_use: AbstractAsyncContextManager[Inbox] | None = None

    @abstractmethod
    async def wait(self) -> Outcome:
        """Do the feature's work and return how it ended."""

    def validate(self) -> None:
        """Check the rendered arguments.

        :raises InputError: one of them is wrong; the message names it and the fix.
        """

    @abstractmethod
    async def cancel(self, wait: Wait) -> None:
        """Stop the outside work of a wait that was killed, superseded or has expired. May be called again."""

    async def expired(self) -> Outcome:
        """Return the outcome of a wait whose deadline passed."""
        return Failure(f"nothing came within the timeout of {self.timeout:g} s")

    @property
    def cancellable(self) -> bool:
        """Whether there is anything that :meth:`cancel` would stop."""
        return True

    @property
    def heartbeats_within(self) -> float | None:
        """Seconds between two heartbeats after which the wait fails; None when none are expected."""
        return None

    @property
    def xcoms_to_clear(self) -> tuple[str, ...]:
        """The XComs that an earlier attempt may have left, which Airflow does not clear with the task."""
        return (delivery.RETURN_VALUE,)

    @property
    def expected(self) -> dict[str, Any]:
        """What the endpoint needs to judge a callback."""
        return {}

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the classpath and the kwargs that make this trigger again."""
        names = ("timeout", "attempt", "ends_on_worker", "do_xcom_push", *self.arguments)
        return self.classpath, {name: getattr(self, name) for name in names}

    @property
    def log(self) -> Any:
        """The logger of all triggers of this class: Airflow tells whose log it writes to from the context."""
        return self.logger()

    def __repr__(self) -> str:
        # Rendered arguments may hold secrets, and Airflow logs triggers.
        return f"<{type(self).__name__}>"

    def get_template_env(self, dag: DAG | None = None) -> jinja2.Environment:
        """Return Airflow's environment for templates, in which an undefined name is an error, as it is on a worker."""
        environment: jinja2.Environment = super().get_template_env(dag)
        environment.undefined = jinja2.StrictUndefined  # Airflow's triggerer would render it as ''
        return environment

    def render_template_fields(self, context: Context, jinja_env: jinja2.Environment | None = None) -> None:
        """Render the templates. What goes wrong becomes the task's failure: Airflow would start a worker to say so."""
        try:
            super().render_template_fields(context, jinja_env)
        except Exception as error:
            self._not_rendered = f"{type(error).__name__}: {error}"

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield the one event that ends the task or resumes it on a worker."""
        # Thousands of triggers stay in here. Each coroutine between this one and wait() would cost all of them 260
        # bytes, and each with statement 64.
        started_at = time.monotonic()
        try:
            try:
                await self._register()
                try:
                    outcome = await (
                        self.wait() if self.current.state is WaitState.WAITING else self.wait_until_settled()
                    )
                except (Exception, SystemExit) as error:
                    outcome = self._failed_by(error)
                outcome = await self._settle(outcome)
            finally:
                await self._leave_inbox()
        except (Exception, SystemExit) as error:
            # SystemExit would end the whole triggerer, and again at its restart.
            outcome = self._failed_by(error)
        if self.task_instance is not None and self.current is not None:
            await self._leave_to_airflow()
        event = await delivery.event_for(self, outcome)
        if self.attempt is not None and self.task_instance is not None:
            earliest = RESUME_AFTER_DEFER if type(event) is TriggerEvent else _END_AFTER_DEFER
            await asyncio.sleep(earliest - (time.monotonic() - started_at))
        yield event

    async def on_kill(self) -> None:
        """Find out whether a user ended the task, and if so stop its outside work.

        Airflow also calls this when it hands the trigger to another triggerer (airflow#73454), and allows it about a
        second: so the question is asked by a task of its own.
        """
        background.detach(end_if_killed(self.identify()))

    def identify(self) -> Attempt:
        """Return which attempt of which task this trigger waits for."""
        if self.attempt is not None:
            return Attempt(**self.attempt)
        ti = self.task_instance
        if ti is None:
            raise DeferrableOpsError(
                "Airflow gave the trigger no task instance, and no worker named the attempt"
            )
        logical_date = ti.get_template_context().get("logical_date") if self.task else None
        return Attempt.of(ti, logical_date)

    async def wait_until_settled(self) -> Outcome:
        """Return the wait's outcome once the inbox has one."""
        while self.current.state is WaitState.WAITING:
            await self.changes.next_change()
            if (changed := self.changes.take()) is not None:
                self.current = changed
                await self.on_wait_updated()
        if self.current.outcome is not None:
            return self.current.outcome
        if self.current.state is WaitState.EXPIRED:
            return await self.expired()
        return Failure(f"the wait is {self.current.state}: another attempt, or a user, ended it")

    async def on_wait_updated(self) -> None:
        """Take note of a change to the wait, which may go on."""

    async def push_xcom(self, key: str, value: Any) -> None:
        """Set an XCom while the task waits. In ``dag.test()`` and in tests there is no triggerer to take it."""
        if self.task_instance is not None:
            await delivery.push_xcom(self.current.attempt, key, value)

    async def race_with_settlement(self, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Return what the work comes to, or the wait's outcome when the inbox has one first; the work then ends."""
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
        """Return once nothing is left to be stopped of what other attempts of the task have launched.

        A feature whose work must not run twice at once awaits this before it launches. What cannot be stopped is
        tried again every minute: the wait's deadline ends that.
        """
        pause = 0.0
        while left := await self.inbox.cancellations.requeue_other_attempts(self.current.id):
            if not pause:
                self.log.info("What an earlier attempt launched is stopped first (wait %s)", ", ".join(left))
            await asyncio.sleep(pause)
            for wait_id in left:
                await stop_due_work(self.inbox, wait_id)
            pause = _ASK_AGAIN_AFTER

    def must_cancel_work(self, outcome: Outcome) -> bool:
        """Return whether outside work may go on after this outcome, which nobody needs then: it is stopped."""
        return False

    async def _register(self) -> None:
        attempt = self.identify()
        if self.task_instance is not None:
            background.start()
            await delivery.forget_earlier_xcoms(self, attempt)
        if self._not_rendered is not None:
            raise InputError(f"a template could not be rendered ({self._not_rendered})")
        self.validate()
        inbox_use = use_inbox(retry_timeout=NO_RETRY_TIMEOUT)
        self.inbox = await inbox_use.__aenter__()
        self._inbox_use = inbox_use
        with _registering.turn() as begins:
            await begins
            new = self.new_wait(attempt)
            self.changes = self.inbox.watcher.subscribe(new.wait_id).__enter__()
            self.current = await self.inbox.waits.register(new)

    async def _leave_inbox(self) -> None:
        if self.changes is not None:
            self.changes.__exit__()
        if self._inbox_use is not None:
            await self._inbox_use.__aexit__(None, None, None)

    async def _leave_to_airflow(self) -> None:
        # The inbox can know of a kill before Airflow cancels the trigger. An event would come too late for this task,
        # and on SQLite for the wrong one: Airflow finds the task by the trigger's id, which SQLite gives to the next.
        if self.current.state in _ENDED_BY_AIRFLOW:
            await asyncio.sleep(_AIRFLOW_CANCELS_WITHIN)

    async def _settle(self, outcome: Outcome) -> Outcome:
        if self.current.outcome is None:  # otherwise the endpoint or the watcher has settled it
            stop_work = self.must_cancel_work(outcome)
            self.current = await self.inbox.waits.settle(self.current.id, outcome, stop_work=stop_work)
        if self.current.cancel == "due":
            background.detach(background.cancel_due(self.current.id))
        return self.current.outcome or outcome

    def new_wait(self, attempt: Attempt) -> NewWait:
        """Return what is registered of the wait."""
        timeout, latest = self.timeout, None
        timeout_after = getattr(self, "timeout_after", None)
        if timeout_after is not None:  # Airflow has a deadline of its own, by the scheduler's clock
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
            trigger=seal(self, attempt) if self.cancellable else None,
        )

    async def _safely(self, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        try:
            return await work
        except (Exception, SystemExit) as error:  # a task that raises SystemExit ends the whole triggerer
            return self._failed_by(error)

    def _failed_by(self, error: BaseException) -> Failure:
        if isinstance(error, DeferrableOpsError):
            return Failure(str(error))
        self.log.error("The trigger failed", exc_info=error)
        return Failure(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
