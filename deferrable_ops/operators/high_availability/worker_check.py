"""Runs checks that only a worker can import. The worker runs one check, then the task is deferred until the next
check.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from airflow.sdk.exceptions import AirflowSkipException, AirflowTaskTimeout
from airflow.sdk.execution_time.timeout import timeout

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability.check_calls import accepted_kwargs, parse_result, require_parameters
from deferrable_ops.high_availability.check_evaluator import CheckEvaluator, CheckRules
from deferrable_ops.high_availability.facts import RunFacts
from deferrable_ops.high_availability.results import (
    SKIPPED_TASKS,
    Action,
    CheckResult,
    Decision,
    Result,
    gates_to_skip,
)
from deferrable_ops.inbox import Inbox, NewWait, Wait, WaitState, use_inbox
from deferrable_ops.inbox.large_values import run_sync
from deferrable_ops.operators.base import attempt_of, finish, register_on_worker
from deferrable_ops.outcome import Failure, Outcome, Skip, Success
from deferrable_ops.triggers.high_availability.triggers import FEATURE, HighAvailabilityPauseTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

# Seconds. If a database restarts, a worker waits this long, so that no check is lost.
_RETRY_TIMEOUT = 300.0


class WorkerCheckTask(Protocol):
    """The attributes of a HighAvailabilityOperator that this module uses."""

    task_id: str
    timeout: float
    check_timeout: float
    python_callable: Callable[..., Any] | None
    op_args: list[Any] | None
    op_kwargs: dict[str, Any] | None
    templates_dict: dict[str, Any] | None
    soft_fail: bool
    worker_check_reason: str | None
    worker_check_fix: str

    @property
    def log(self) -> Any:
        """The task's log."""

    def defer(self, *, trigger: Any, method_name: str) -> Any:
        """Defer the task."""

    def _deadline_seconds(self) -> float: ...


def check_on_worker(task: WorkerCheckTask, context: Context, facts: RunFacts, rules: CheckRules) -> Any:
    """Run one check. If this check was the last, return its result. Otherwise defer the task until the next check.

    :raises TaskDeferred: if a further check is needed.
    :raises AirflowSkipException: if the check raised this exception, or if a task with ``soft_fail`` timed out.
    """
    wait = _with_inbox(lambda inbox: _registered(inbox, task, context))
    if wait.outcome is not None:
        return finish(wait.id, wait.outcome)
    if wait.progress is None:
        task.log.warning(
            "Each check runs on a worker because %s; %s", task.worker_check_reason, task.worker_check_fix
        )
    evaluator = CheckEvaluator(task.task_id, facts, rules, wait.progress)
    now = datetime.now(UTC)
    decision = evaluator.at_limit(now)
    if decision is None and _is_over(wait, now):
        if task.soft_fail:
            return _ended(wait, Skip("skipped because the timeout is over and soft_fail=True"))
        decision = evaluator.timed_out(now)
    if decision is None:
        try:
            checked = _checked(task, context)
        except AirflowSkipException as skip:
            return _ended(wait, Skip(str(skip) or "the check raised AirflowSkipException"))
        except InputError as error:
            return _ended(wait, Failure(str(error), retryable=False))
        task.log.info("The check returned %s/%s", *checked)
        decision = evaluator.evaluate(checked, datetime.now(UTC))
    if decision is None:
        _with_inbox(lambda inbox: inbox.waits.save_progress(wait.id, evaluator.state))
        until = min(time.time() + evaluator.pause(datetime.now(UTC)), wait.deadline)
        return task.defer(trigger=HighAvailabilityPauseTrigger(until), method_name="check_again")
    return _decided(task, context, wait, decision)


def _decided(task: WorkerCheckTask, context: Context, wait: Wait, decision: Decision) -> Any:
    task.log.info("The checks ended with result %s and action %s, because %s", *decision)
    skipped = gates_to_skip(task.task_id, decision.result, decision.action)
    context["ti"].xcom_push(key=SKIPPED_TASKS, value={"skipped": skipped})
    return _ended(wait, Success(decision.as_json()))


def _ended(wait: Wait, outcome: Outcome) -> Any:
    settled = _with_inbox(lambda inbox: inbox.waits.settle(wait.id, outcome))
    return finish(wait.id, settled.outcome or outcome)


async def _registered(inbox: Inbox, task: WorkerCheckTask, context: Context) -> Wait:
    new = NewWait(attempt=attempt_of(context), feature=FEATURE, timeout=task._deadline_seconds())
    return await register_on_worker(inbox, new, task.log)


def _is_over(wait: Wait, now: datetime) -> bool:
    return wait.state is WaitState.EXPIRED or now.timestamp() >= wait.deadline


def _checked(task: WorkerCheckTask, context: Context) -> CheckResult:
    check: Any = task.python_callable
    args: Sequence[Any] = task.op_args or ()
    given = {**context, **(task.op_kwargs or {}), "templates_dict": task.templates_dict}
    if not inspect.isclass(check):
        require_parameters(check, args, given)
    try:
        limit = timeout(task.check_timeout, f"check_timeout={task.check_timeout:g} s is over")  # type: ignore[no-untyped-call]
        with limit:
            if inspect.isclass(check):
                check, args, given = check(*args, **(task.op_kwargs or {})), (), dict(context)
                require_parameters(check, args, given)
            returned = check(*args, **accepted_kwargs(check, args, given))
            if inspect.iscoroutine(returned):
                returned = asyncio.run(returned)
    except (AirflowSkipException, InputError):
        raise
    except (Exception, SystemExit, AirflowTaskTimeout) as error:
        task.log.error(
            "The check failed with %s, so its result is FAIL/RETRIGGER", type(error).__name__, exc_info=error
        )
        return Result.FAIL, Action.RETRIGGER
    return parse_result(returned, task.log)


def _with_inbox(work: Callable[[Inbox], Coroutine[Any, Any, Any]]) -> Any:
    async def opened() -> Any:
        async with use_inbox(retry_timeout=_RETRY_TIMEOUT) as inbox:
            return await work(inbox)

    return run_sync(opened())
