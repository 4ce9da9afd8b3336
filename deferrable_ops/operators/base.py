"""The base class of all operators. A task can start and end in the triggerer or on a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, TypeVar, cast

from airflow.sdk import BaseOperator
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from airflow.triggers.base import StartTriggerArgs

from deferrable_ops.exceptions import InputError, NotOwner, UnknownWait
from deferrable_ops.inbox import Attempt, Inbox, NewWait, Wait
from deferrable_ops.inbox.large_values import as_xcom, read_outcome
from deferrable_ops.operators.templates import renders_unchanged
from deferrable_ops.operators.worker_reasons import worker_end_reasons, worker_start_reason
from deferrable_ops.outcome import Failure, Outcome, Skip, Success, outcome_from_json
from deferrable_ops.triggers.base import DEFAULT_TIMEOUT, TaskTrigger

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.sdk import Context

T = TypeVar("T")


class _Computed(Generic[T]):
    """A descriptor for an attribute with a fixed value on the class and a computed value on each task.

    Airflow copies the value of the operator class to mapped tasks. So for ``start_from_trigger``, the value of the
    class must be False, the only value that is safe for every mapped task. The value of a task depends on its DAG, its
    ``default_args`` and its downstream tasks. These may change until the DAG is serialized, so the value is computed
    on each access.
    """

    def __init__(self, class_value: T, compute: Callable[[Any], T]) -> None:
        self._class_value = class_value
        self._compute = compute

    def __get__(self, task: BaseOperator | None, _owner: type) -> T:
        if task is None or not getattr(task, "_BaseOperator__instantiated", False):
            return self._class_value
        return self._compute(task)


class _PerTask(_Computed[T]):
    """A computed attribute that users cannot set."""

    def __set__(self, task: BaseOperator, value: T) -> NoReturn:
        raise AttributeError(
            "start_from_trigger and start_trigger_args cannot be set, because the library decides where a task starts; "
            "remove the assignment. The attribute worker_start_reason explains why a task starts on a worker"
        )


class TriggererOperator(BaseOperator):
    """Base class of the operators whose work is done by a trigger.

    The scheduler defers the task, and the trigger does the work and ends the task. The task runs on a worker only if
    an argument or a callback of the task needs a worker. :attr:`worker_start_reason` is the reason why the task starts
    on a worker.

    :param timeout: how long the task may wait, as a timedelta or in seconds; 7 days by default. If the task's
        ``execution_timeout`` is shorter, the wait ends after the ``execution_timeout``.
    """

    trigger_class: ClassVar[type[TaskTrigger]]
    next_method: ClassVar[str] = "execute_complete"
    template_ext: Sequence[str] = ()

    start_from_trigger = _PerTask[bool](False, lambda task: task.worker_start_reason is None)
    start_trigger_args = _PerTask["StartTriggerArgs | None"](
        None, lambda task: task._start_trigger_args() if task.start_from_trigger else None
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Each trigger that the scheduler starts carries the serialized DAG. So a task's template fields are only those
        # that rendering can change.
        fields, renderers = map(cls.__dict__.get, ("template_fields", "template_fields_renderers"))
        if isinstance(fields, Sequence):
            cls.template_fields = cast("Any", _Computed(fields, lambda task: _rendered_fields(task, fields)))
        if isinstance(renderers, dict):
            chosen = _Computed(renderers, lambda task: _chosen(renderers, task.template_fields))
            cls.template_fields_renderers = cast("Any", chosen)

    def __init__(self, *, timeout: timedelta | float = DEFAULT_TIMEOUT, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Airflow copies the DAG's params to each task, and merges both again when the task runs.
        self.params = ParamsDict.filter_params_by_source(ParamsDict(self.params), "task")
        self.timeout = seconds("timeout", timeout)

    @property
    def worker_start_reason(self) -> str | None:
        """The reason why the task starts on a worker and is then deferred; None if it starts in the triggerer."""
        return worker_start_reason(self, self.trigger_class.arguments)

    @property
    def airflow_timeout(self) -> float:
        """The timeout in seconds after which Airflow itself ends the deferral of the task."""
        return self._deadline_seconds()

    def execute(self, context: Context) -> Any:
        """Return the task's result if its wait is already over; otherwise defer the task to its trigger.

        :raises TaskDeferred: if the wait is not over.
        """
        attempt = attempt_of(context)
        outcome = read_outcome(attempt.wait_id)
        if outcome is not None:
            return finish(attempt.wait_id, outcome)
        trigger = self.trigger_class(**self.trigger_kwargs(), attempt=asdict(attempt))
        timeout = timedelta(seconds=self.airflow_timeout)
        return self.defer(trigger=trigger, method_name=self.next_method, timeout=timeout)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Return the result of the task's wait. Airflow calls this method when the trigger has resumed the task on a
        worker.

        :raises AirflowException: if the wait failed; Airflow retries the task if the task has retries.
        :raises AirflowFailException: if the wait failed and must not be retried.
        :raises AirflowSkipException: if the task is skipped.
        """
        return finish_event(event)

    def trigger_kwargs(self) -> dict[str, Any]:
        """Return the arguments of the task's trigger."""
        arguments = {name: getattr(self, name) for name in self.trigger_class.arguments}
        given = {name: value for name, value in arguments.items() if value is not None}
        return given | {
            "timeout": self._deadline_seconds(),
            "ends_on_worker": worker_end_reasons(self),
            "do_xcom_push": self.do_xcom_push,
        }

    def _start_trigger_args(self) -> StartTriggerArgs:
        defaults = self.trigger_class.defaults()
        kwargs = self.trigger_kwargs()
        kwargs["ends_on_worker"] = kwargs["ends_on_worker"] or None
        return StartTriggerArgs(
            trigger_cls=self.trigger_class.classpath,
            # Each trigger that the scheduler starts carries the serialized DAG, so the DAG must be small.
            trigger_kwargs={
                name: value
                for name, value in kwargs.items()
                if name not in defaults or not _equal(value, defaults[name])
            },
            next_method=self.next_method,
            next_kwargs=None,
            timeout=timedelta(seconds=self.airflow_timeout),
        )

    def _deadline_seconds(self) -> float:
        if self.execution_timeout is None:
            return self.timeout
        return min(self.timeout, self.execution_timeout.total_seconds())


def _rendered_fields(task: TriggererOperator, names: Sequence[str]) -> Sequence[str]:
    """Return the names of the template fields that the task uses. If the task starts in the triggerer, return only the
    fields that contain templates.
    """
    used = [name for name in names if getattr(task, name, "") is not None]
    if task.worker_start_reason is None:
        used = [name for name in used if not renders_unchanged(getattr(task, name, ""))]
    return tuple(used)


def _chosen(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}


def _equal(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)


def attempt_of(context: Context) -> Attempt:
    """Return the task attempt that belongs to an Airflow context."""
    return Attempt.of(context["ti"], context.get("logical_date"))


async def register_on_worker(inbox: Inbox, new: NewWait, log: Any) -> Wait:
    """Register a wait from a worker.

    If the inbox belongs to another Airflow deployment, the registration is retried until the wait's timeout is over.

    :raises NotOwner: if the inbox still belongs to another deployment after the wait's timeout.
    """
    ends_at = time.monotonic() + new.timeout
    while True:
        try:
            return await inbox.waits.register(new)
        except NotOwner:
            if time.monotonic() >= ends_at:
                raise
            with suppress(TimeoutError):
                async with asyncio.timeout(ends_at - time.monotonic()):
                    await inbox.owner.wait(log)


def finish_event(event: dict[str, Any]) -> Any:
    """Return the result of the wait whose id or outcome a trigger event contains.

    If the wait failed or was skipped, raise the exception with which Airflow fails or skips the task.
    """
    match event:
        case {"wait": str(wait_id)}:
            outcome = read_outcome(wait_id)
        case {"outcome": dict(data)}:
            wait_id, outcome = "", outcome_from_json(data)
        case _:
            raise AirflowFailException(
                "the trigger sent an event that this version of the library does not know; install the same version on "
                f"workers and triggerers. The event: {event!r}"
            )
    if outcome is None:
        raise UnknownWait(
            f"the inbox of this worker has no outcome of the wait {wait_id}; "
            "set the same [deferrable_ops] inbox_url on workers, API server and triggerers"
        )
    return finish(wait_id, outcome)


def finish(wait_id: str, outcome: Outcome) -> Any:
    """Return the XCom value of a successful wait.

    After a failed or a skipped wait, raise the exception with which Airflow fails or skips the task.
    """
    match outcome:
        case Success(value):
            return as_xcom(wait_id, value)
        case Failure(reason, retryable=True):
            raise AirflowException(reason)
        case Failure(reason):
            raise AirflowFailException(reason)
        case Skip(reason):
            raise AirflowSkipException(reason)


def flag(name: str, value: bool) -> bool:
    """Return a boolean argument.

    :raises InputError: if the value is not True or False.
    """
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r} must be True or False")
    return value


def optional_seconds(name: str, value: timedelta | float | None) -> float | None:
    """Convert a duration to seconds. Return None if the value is None.

    :raises InputError: if the value is not a duration, or is not above zero.
    """
    return None if value is None else seconds(name, value)


def seconds(name: str, value: timedelta | float) -> float:
    """Convert a duration to seconds.

    :raises InputError: if the value is not a duration, or is not above zero.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{name}={value!r} is not a duration; give a timedelta, or seconds as a number")
    if not 0 < value < float("inf"):
        raise InputError(f"{name}={value!r} must be above zero and finite")
    return float(value)
