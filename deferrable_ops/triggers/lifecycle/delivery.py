"""The ways out: how an outcome becomes the end of the task, in the triggerer where it can be, on a worker elsewhere."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import TaskFailedEvent, TaskSkippedEvent, TaskSuccessEvent, TriggerEvent

from deferrable_ops import settings
from deferrable_ops.inbox import Attempt
from deferrable_ops.inbox.large_values import as_xcom
from deferrable_ops.outcome import Failure, Outcome, Skip, Success, outcome_to_json

if TYPE_CHECKING:
    from deferrable_ops.triggers.base import TaskTrigger

RETURN_VALUE = "return_value"

_XCOM_SECONDS = 60.0  # the triggerer serves one XCom at a time, 20 ms each, and its first one after 6 s


async def event_for(trigger: TaskTrigger, outcome: Outcome) -> TriggerEvent:
    """Return the event that ends the task with this outcome, or resumes it on a worker to end there."""
    _log(trigger, outcome)
    try:
        reason = await _worker_needed_because(trigger, outcome)
    except (
        Exception,
        SystemExit,
    ) as error:  # a wait that has ended must not fail for a setting, or for a plugin
        reason = f"nobody can say whether it may end in the triggerer ({type(error).__name__}: {error})"
    if reason is None and isinstance(outcome, Success):
        reason = await _push_failed_because(trigger, outcome)
    if reason is not None:
        trigger.log.info("The task ends on a worker, because %s", reason)
        return _resume_with(trigger, outcome)
    match outcome:
        case Success():
            return TaskSuccessEvent()
        case Failure():
            return TaskFailedEvent()
        case Skip():
            return TaskSkippedEvent()


async def push_xcom(attempt: Attempt, key: str, value: Any) -> None:
    """Set an XCom of the task.

    :raises TimeoutError: Airflow did not take it within a minute.
    """
    from airflow.sdk.execution_time.xcom import XCom

    async with asyncio.timeout(_XCOM_SECONDS):
        await XCom.aset(
            key=key,
            value=value,
            dag_id=attempt.dag_id,
            run_id=attempt.run_id,
            task_id=attempt.task_id,
            map_index=attempt.map_index,
        )


async def forget_earlier_xcoms(trigger: TaskTrigger, attempt: Attempt) -> None:
    """Delete what an earlier attempt of the task has shown or returned. One that cannot be deleted stays."""
    if attempt.try_number > 1 and trigger.attempt is None:  # a worker's start has cleared them
        for key in trigger.xcoms_to_clear:
            try:
                await delete_xcom(attempt, key)
            except Exception as error:
                trigger.log.warning("An earlier attempt's XCom %s stays: %s", key, type(error).__name__)


async def delete_xcom(attempt: Attempt, key: str) -> None:
    """Delete an XCom of the task, which Airflow does not do when the task is cleared.

    :raises TimeoutError: Airflow did not do it within a minute.
    """
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import DeleteXCom

    message = DeleteXCom(
        key=key,
        dag_id=attempt.dag_id,
        run_id=attempt.run_id,
        task_id=attempt.task_id,
        map_index=attempt.map_index,
    )
    async with asyncio.timeout(_XCOM_SECONDS):
        await task_runner.SUPERVISOR_COMMS.asend(message)


def _log(trigger: TaskTrigger, outcome: Outcome) -> None:
    match outcome:
        case Success():
            trigger.log.info("The wait ended well")
        case Failure(reason, retryable):
            trigger.log.error("The wait failed: %s%s", reason, "" if retryable else " (not to be retried)")
        case Skip(reason):
            trigger.log.info("The task is skipped: %s", reason)


async def _worker_needed_because(trigger: TaskTrigger, outcome: Outcome) -> str | None:
    if trigger.task_instance is None:
        return "it was started by dag.test()"
    declared = trigger.ends_on_worker or {}
    match outcome:
        case Success():
            reason = declared.get("success")
        case Failure(retryable=True):
            reason = declared.get("failure")
        case Failure():
            reason = declared.get("failure") or declared.get("final_failure")
        case Skip():
            reason = declared.get("skip")
    if reason is not None:
        return reason
    success = isinstance(outcome, Success)
    if success not in _looked_for:
        await asyncio.to_thread(_deployment_needs_worker_because, success)
        _looked_for.add(success)
    return _deployment_needs_worker_because(success)


_looked_for: set[bool] = set()


@lru_cache(maxsize=2)
def _deployment_needs_worker_because(success: bool) -> str | None:
    # The first look imports every plugin, so it is a thread's; all others are answered at once.
    from airflow.sdk.bases.xcom import BaseXCom
    from airflow.sdk.execution_time.xcom import XCom
    from airflow.sdk.listener import get_listener_manager

    if not settings.end_from_trigger():
        return "[deferrable_ops] end_from_trigger = never"
    listeners = get_listener_manager().pm.get_plugins()
    if listeners:
        names = ", ".join(
            sorted(getattr(listener, "__name__", type(listener).__qualname__) for listener in listeners)
        )
        return f"listeners are installed, which the triggerer does not call: {names}"
    if success and XCom is not BaseXCom:
        return "a custom XCom backend is configured, which would block the triggerer"
    return None


async def _push_failed_because(trigger: TaskTrigger, outcome: Success) -> str | None:
    if outcome.value is None or not trigger.do_xcom_push:
        return None
    attempt = trigger.identify()
    try:
        await push_xcom(attempt, RETURN_VALUE, as_xcom(attempt.wait_id, outcome.value))
    except Exception as error:
        return f"its XCom could not be set from the triggerer ({type(error).__name__}: {error})"
    return None


def _resume_with(trigger: TaskTrigger, outcome: Outcome) -> TriggerEvent:
    # Airflow logs an event and keeps it with the task, so it holds a reference, and the worker asks the inbox.
    current = getattr(trigger, "current", None)
    if current is not None and current.outcome is not None:
        payload: dict[str, Any] = {"wait": current.id}
    else:
        payload = {"outcome": outcome_to_json(outcome)}
    return TriggerEvent(payload)  # type: ignore[no-untyped-call]
