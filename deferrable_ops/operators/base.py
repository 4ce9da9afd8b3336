"""The operator that only defers: its two ways in, and its end on a worker where one is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, TypeVar

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from airflow.triggers.base import StartTriggerArgs

from deferrable_ops.exceptions import InputError, UnknownWait
from deferrable_ops.inbox import Attempt
from deferrable_ops.inbox.large_values import as_xcom, read_outcome
from deferrable_ops.operators.worker_reasons import worker_end_reasons, worker_start_reason
from deferrable_ops.outcome import Failure, Outcome, Skip, Success, outcome_from_json
from deferrable_ops.triggers.base import DEFAULT_TIMEOUT, TaskTrigger

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.sdk import Context

T = TypeVar("T")


class _PerTask(Generic[T]):
    """An attribute that the class has a plain value for, and each finished task works out when Airflow reads it.

    Airflow copies the class's value to mapped tasks, where only False is safe; and a task is finished, with its DAG,
    its defaults and its dependants, no earlier than when the DAG is serialized.
    """

    def __init__(self, of_class: T, of_task: Callable[[Any], T]) -> None:
        self._of_class = of_class
        self._of_task = of_task

    def __get__(self, task: BaseOperator | None, _owner: type) -> T:
        if task is None or not getattr(task, "_BaseOperator__instantiated", False):
            return self._of_class
        return self._of_task(task)

    def __set__(self, task: BaseOperator, value: T) -> NoReturn:
        raise AttributeError("the library decides where a task starts; see worker_start_reason")


class TriggererOperator(BaseOperator):
    """An operator whose work is a trigger's.

    The scheduler defers the task, the trigger does the work and ends the task: no worker takes part, unless
    something that the user declared needs one; :attr:`worker_start_reason` says what.

    :param timeout: how long the task may wait, as a timedelta or in seconds; 7 days by default, so that nothing waits
        for ever. ``execution_timeout`` counts too: the shorter of them ends the wait.
    """

    trigger_class: ClassVar[type[TaskTrigger]]
    next_method: ClassVar[str] = "execute_complete"
    template_ext: Sequence[str] = ()

    start_from_trigger = _PerTask[bool](False, lambda task: task.worker_start_reason is None)
    start_trigger_args = _PerTask["StartTriggerArgs | None"](
        None, lambda task: task._start_trigger_args() if task.start_from_trigger else None
    )

    def __init__(self, *, timeout: timedelta | float = DEFAULT_TIMEOUT, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.timeout = seconds("timeout", timeout)

    @property
    def worker_start_reason(self) -> str | None:
        """What makes this task start on a worker, which then defers it; None when it starts in the triggerer."""
        return worker_start_reason(self)

    def execute(self, context: Context) -> Any:
        """Return the answer when it is there already, and defer the task to its trigger when it is not.

        :raises TaskDeferred: it is not.
        """
        attempt = attempt_of(context)
        outcome = read_outcome(attempt.wait_id)
        if outcome is not None:
            return finish(attempt.wait_id, outcome)
        trigger = self.trigger_class(**self.trigger_kwargs(), attempt=asdict(attempt))
        timeout = timedelta(seconds=self._deadline_seconds())
        return self.defer(trigger=trigger, method_name=self.next_method, timeout=timeout)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Take over what the trigger came to, and return its value.

        :raises AirflowException: the wait failed; Airflow retries the task if it has retries.
        :raises AirflowFailException: it failed and must not be retried.
        :raises AirflowSkipException: it is to be skipped.
        """
        return finish_event(event)

    def trigger_kwargs(self) -> dict[str, Any]:
        """Return what the task's trigger is made with."""
        arguments = {name: getattr(self, name) for name in self.trigger_class.arguments}
        given = {name: value for name, value in arguments.items() if value is not None}
        return given | {
            "timeout": self._deadline_seconds(),
            "ends_on_worker": worker_end_reasons(self),
            "do_xcom_push": self.do_xcom_push,
        }

    def _start_trigger_args(self) -> StartTriggerArgs:
        return StartTriggerArgs(
            trigger_cls=self.trigger_class.classpath,
            trigger_kwargs=self.trigger_kwargs(),
            next_method=self.next_method,
            next_kwargs=None,
            timeout=timedelta(seconds=self._deadline_seconds()),
        )

    def _deadline_seconds(self) -> float:
        if self.execution_timeout is None:
            return self.timeout
        return min(self.timeout, self.execution_timeout.total_seconds())


def attempt_of(context: Context) -> Attempt:
    """Return which attempt of which task a worker runs."""
    return Attempt.of(context["ti"], context.get("logical_date"))


def finish_event(event: dict[str, Any]) -> Any:
    """Return the value of the wait that an event resumes on a worker, or raise what its failure or skip means."""
    match event:
        case {"wait": str(wait_id)}:
            outcome = read_outcome(wait_id)
        case {"outcome": dict(data)}:
            wait_id, outcome = "", outcome_from_json(data)
        case _:
            raise AirflowFailException(f"the trigger's event is not one of this library's: {event!r}")
    if outcome is None:
        raise UnknownWait(
            f"this worker's inbox does not know how the wait {wait_id} ended; "
            "set the same [deferrable_ops] inbox_url on workers, API server and triggerers"
        )
    return finish(wait_id, outcome)


def finish(wait_id: str, outcome: Outcome) -> Any:
    """Return the value of an outcome, as its XCom shall be, or raise what its failure or skip means."""
    match outcome:
        case Success(value):
            return as_xcom(wait_id, value)
        case Failure(reason, retryable=True):
            raise AirflowException(reason)
        case Failure(reason):
            raise AirflowFailException(reason)
        case Skip(reason):
            raise AirflowSkipException(reason)


def optional_seconds(name: str, value: timedelta | float | None) -> float | None:
    """Return a duration in seconds, or None where none is given.

    :raises InputError: it is not a duration, or not above zero.
    """
    return None if value is None else seconds(name, value)


def seconds(name: str, value: timedelta | float) -> float:
    """Return a duration in seconds.

    :raises InputError: it is not a duration, or not above zero.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{name}={value!r} is not a duration; give a timedelta, or seconds as a number")
    if not 0 < value < float("inf"):
        raise InputError(f"{name}={value!r} must be above zero")
    return float(value)
