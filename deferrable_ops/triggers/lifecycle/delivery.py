"""Ends a task with its outcome. If possible, the task ends in the triggerer, otherwise on a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from airflow.triggers.base import TaskFailedEvent, TaskSkippedEvent, TaskSuccessEvent, TriggerEvent

from deferrable_ops import settings
from deferrable_ops.inbox import Attempt, Wait
from deferrable_ops.inbox.large_values import as_xcom
from deferrable_ops.outcome import Failure, Outcome, Skip, Success, outcome_to_json
from deferrable_ops.supervisor_calls import Rank, call_supervisor, send
from deferrable_ops.triggers.lifecycle import log_pipe

RETURN_VALUE = "return_value"

_XCOM_TIMEOUT = 60.0
# The log of a triggerer is rarely late by more than 3 s. A task must not wait long for lines of other tasks.
_LOG_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class EndingTask:
    """A task whose wait is over.

    :param wait: the task's wait as stored in the inbox; None if the wait could not be registered.
    :param in_triggerer: whether a triggerer runs the task; False in ``dag.test()`` and in tests.
    :param worker_reasons: the reasons why the task must end on a worker, by outcome: the argument `ends_on_worker` of
        :class:`~deferrable_ops.triggers.base.TaskTrigger`.
    :param do_xcom_push: whether the result of a successful wait becomes an XCom.
    :param log: the task's logger.
    """

    wait: Wait | None
    in_triggerer: bool
    worker_reasons: Mapping[str, str]
    do_xcom_push: bool
    log: Any


async def event_for(task: EndingTask, outcome: Outcome) -> TriggerEvent:
    """Return a trigger event that ends the task with the given outcome, in the triggerer or on a worker.

    Return it when the task's log lines are read, because Airflow closes the log when the trigger has ended.
    """
    _log(task, outcome)
    try:
        reason = await _worker_end_reason(task, outcome)
    except (Exception, SystemExit) as error:
        # The wait is over. A wrong setting or a faulty plugin must not change its outcome.
        reason = (
            f"the check whether the task can end in the triggerer failed ({type(error).__name__}: {error})"
        )
    if reason is None and isinstance(outcome, Success):
        reason = await _push_value(task, outcome)
    if reason is not None:
        task.log.info("The task ends on a worker, because %s", reason)
    await log_pipe.until_read(_LOG_TIMEOUT)
    if reason is not None:
        return _resume_event(task, outcome)
    match outcome:
        case Success():
            return TaskSuccessEvent()
        case Failure():
            return TaskFailedEvent()
        case Skip():
            return TaskSkippedEvent()


async def push_xcom(attempt: Attempt, key: str, value: Any, rank: Rank = Rank.PROGRESS) -> None:
    """Set an XCom of the task.

    :raises TimeoutError: if Airflow did not set the XCom within a minute.
    """
    from airflow.sdk.execution_time.xcom import XCom

    def push() -> Awaitable[None]:
        pushed: Awaitable[None] = XCom.aset(key=key, value=value, **task_of_xcom(attempt))
        return pushed

    await call_supervisor(push, rank=rank, timeout=_XCOM_TIMEOUT)


def has_custom_xcom_backend() -> bool:
    """Return whether ``[core] xcom_backend`` is set. Such a backend would block the triggerer's event loop."""
    from airflow.sdk.bases.xcom import BaseXCom
    from airflow.sdk.execution_time.xcom import XCom

    return XCom is not BaseXCom


async def clear_xcoms(attempt: Attempt, keys: Iterable[str], log: Any) -> None:
    """Delete the XComs that earlier attempts of the task have set. If a deletion fails, log a warning."""
    for key in keys:
        try:
            await delete_xcom(attempt, key)
        except Exception as error:
            log.warning(
                "Could not delete the XCom %s of an earlier attempt (%s), so other tasks may read its old value",
                key,
                type(error).__name__,
            )


async def delete_xcom(attempt: Attempt, key: str) -> None:
    """Delete an XCom of the task. Airflow does not delete the XComs of a cleared task that starts in the triggerer.

    :raises TimeoutError: if Airflow did not delete the XCom within a minute.
    """
    from airflow.sdk.execution_time.comms import DeleteXCom

    message = DeleteXCom(key=key, **task_of_xcom(attempt))
    await send(message, rank=Rank.READ, timeout=_XCOM_TIMEOUT)


def task_of_xcom(attempt: Attempt) -> dict[str, Any]:
    """Return the keyword arguments that identify the task of an attempt in Airflow's calls for XComs."""
    return {
        "dag_id": attempt.dag_id,
        "run_id": attempt.run_id,
        "task_id": attempt.task_id,
        "map_index": attempt.map_index,
    }


def _log(task: EndingTask, outcome: Outcome) -> None:
    match outcome:
        case Success():
            task.log.info("The wait succeeded")
        case Failure(reason, retryable):
            task.log.error("The wait failed: %s%s", reason, "" if retryable else " (will not be retried)")
        case Skip(reason):
            task.log.info("The task is skipped: %s", reason)


async def _worker_end_reason(task: EndingTask, outcome: Outcome) -> str | None:
    if not task.in_triggerer:
        return "it was started by dag.test()"
    reasons = task.worker_reasons
    match outcome:
        case Success():
            reason = reasons.get("success")
        case Failure(retryable=True):
            reason = reasons.get("failure")
        case Failure():
            reason = reasons.get("failure") or reasons.get("final_failure")
        case Skip():
            reason = reasons.get("skip")
    if reason is not None:
        return reason
    success = isinstance(outcome, Success)
    if success not in _checked:
        # In a thread, because the first call imports every plugin, which would block the event loop.
        await asyncio.to_thread(_deployment_reason, success)
        _checked.add(success)
    return _deployment_reason(success)


_checked: set[bool] = set()


@lru_cache(maxsize=2)
def _deployment_reason(success: bool) -> str | None:
    from airflow.sdk.listener import get_listener_manager

    if not settings.end_from_trigger():
        return "[deferrable_ops] end_from_trigger = never"
    listeners = get_listener_manager().pm.get_plugins()
    if listeners:
        names = ", ".join(
            sorted(getattr(listener, "__name__", type(listener).__qualname__) for listener in listeners)
        )
        return f"the triggerer does not call the installed listeners ({names})"
    if success and has_custom_xcom_backend():
        return "the configured custom XCom backend would block the triggerer"
    return None


async def _push_value(task: EndingTask, outcome: Success) -> str | None:
    """Set the XCom ``return_value``. Return the reason why the XCom could not be set; None after a success."""
    if outcome.value is None or not task.do_xcom_push or task.wait is None:
        return None
    try:
        await push_xcom(task.wait.attempt, RETURN_VALUE, as_xcom(task.wait.id, outcome.value), Rank.END)
    except Exception as error:
        return (
            f"the triggerer could not set the XCom with the task's result ({type(error).__name__}: {error})"
        )
    return None


def _resume_event(task: EndingTask, outcome: Outcome) -> TriggerEvent:
    # Airflow logs an event and stores it with the task. So the event contains only the wait's id, and the worker reads
    # the outcome from the inbox. If the outcome could not be stored in the inbox, the event contains the outcome.
    if task.wait is not None and task.wait.outcome is not None:
        payload: dict[str, Any] = {"wait": task.wait.id}
    else:
        payload = {"outcome": outcome_to_json(outcome)}
    return TriggerEvent(payload)  # type: ignore[no-untyped-call]
