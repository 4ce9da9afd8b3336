"""The triggers of HighAvailabilityOperator: for checks, for the pause between two checks on a worker, and for gates."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar, Final

from airflow.sdk.exceptions import AirflowSkipException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability.check_evaluator import CheckEvaluator, CheckRules
from deferrable_ops.high_availability.facts import RunFacts
from deferrable_ops.high_availability.limit_functions import compute_limits
from deferrable_ops.high_availability.results import (
    SKIPPED_TASKS,
    Action,
    Decision,
    Result,
    gates_to_skip,
    read_result,
)
from deferrable_ops.high_availability.retrigger_backoff import RetriggerBackoff
from deferrable_ops.inbox import Wait
from deferrable_ops.outcome import Failure, Outcome, Skip, Success
from deferrable_ops.supervisor_calls import Rank
from deferrable_ops.triggers.base import RESUME_AFTER_DEFER, TaskTrigger
from deferrable_ops.triggers.dag_run import newest_wait, run_facts_of, states_of_tasks
from deferrable_ops.triggers.high_availability.check import CheckRunner, check_context
from deferrable_ops.triggers.high_availability.threads import call_in_thread
from deferrable_ops.triggers.lifecycle import delivery

FEATURE: Final = "high_availability"
DEFAULT_CHECK_TIMEOUT: Final = 300.0

_LIMIT_SECONDS: Final = 60.0
# The pause before a retrigger ends this many seconds before the deadline of the gate.
_DEADLINE_MARGIN: Final = 1.0
_FAILED: Final = frozenset({"failed", "upstream_failed"})


class HighAvailabilityTrigger(TaskTrigger):
    """Runs a check repeatedly, until a result of the check, a limit or the timeout ends the task.

    :param check: the dotted path of the check function.
    :param op_args: positional arguments of the check; `op_args`, `op_kwargs` and `templates_dict` have the same
        meaning as for a PythonOperator.
    :param check_timeout: the timeout of one check, in seconds.
    :param rules: the JSON object that :meth:`CheckRules.as_json` returned, with limits, thresholds and intervals.
    :param soft_fail: whether the task is skipped when the timeout is over.
    :param run_facts: the JSON object that :meth:`RunFacts.as_json` returned, if a worker deferred the task.
        If the scheduler deferred the task, `run_facts` is None, and the trigger reads this data from the task instance
        that Airflow sets on the trigger.
    """

    feature: ClassVar[str] = FEATURE
    classpath: ClassVar[str] = "deferrable_ops.triggers.high_availability.HighAvailabilityTrigger"
    arguments: ClassVar[tuple[str, ...]] = (
        "check",
        "op_args",
        "op_kwargs",
        "templates_dict",
        "check_timeout",
        "rules",
        "soft_fail",
        "run_facts",
    )

    def __init__(
        self,
        *,
        check: str = "",
        op_args: list[Any] | None = None,
        op_kwargs: dict[str, Any] | None = None,
        templates_dict: dict[str, Any] | None = None,
        check_timeout: float = DEFAULT_CHECK_TIMEOUT,
        rules: dict[str, Any] | None = None,
        soft_fail: bool = False,
        run_facts: dict[str, Any] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.check = check
        self.op_args = op_args
        self.op_kwargs = op_kwargs
        self.templates_dict = templates_dict
        self.check_timeout = check_timeout
        self.rules = rules
        self.soft_fail = soft_fail
        self.run_facts = run_facts

    @property
    def cancellable(self) -> bool:
        """Return False, because a check launches no external work that could be cancelled."""
        return False

    @property
    def xcoms_to_clear(self) -> tuple[str, ...]:
        """The keys of XComs that an earlier attempt of the task may have set. Airflow does not clear these XComs."""
        return (*super().xcoms_to_clear, SKIPPED_TASKS)

    async def before_end(self, outcome: Outcome) -> None:
        """Make the scheduler skip the gates (downstream tasks) that do not match the result. Otherwise the triggers of
        all gates would start at once, and each trigger would contain a copy of the whole serialized DAG.
        """
        decided = read_result(outcome.value) if isinstance(outcome, Success) else None
        if decided is None or self.current is None or delivery.has_custom_xcom_backend():
            return
        try:
            skipped = gates_to_skip(self.current.attempt.task_id, *decided)
            await self.push_xcom(SKIPPED_TASKS, {"skipped": skipped}, Rank.END)
        except Exception as error:
            self.log.warning(
                "Could not set the XCom %s (%s), so each gate (a task "
                "behind the check) starts and decides by itself",
                SKIPPED_TASKS,
                type(error).__name__,
            )

    async def wait(self) -> Outcome:
        """Run checks until a result, a limit or the timeout ends the task, and return the outcome."""
        return await self.race_with_settlement(self.poll())

    async def cancel(self, wait: Wait) -> None:
        """Do nothing, because a check launches no external work."""

    async def expired(self) -> Outcome:
        """Return the outcome of the task after its timeout is over."""
        if self.soft_fail:
            return Skip("skipped because the timeout is over and soft_fail=True")
        kept = await self.inbox.waits.get(self.current.id)
        evaluator = await self.evaluator(run_facts_of(self), kept.progress)
        return self.end(evaluator.timed_out(_now()))

    async def poll(self) -> Outcome:
        """Run the check again after each pause until the task can end, and return the outcome."""
        facts = run_facts_of(self)
        evaluator = await self.evaluator(facts, self.current.progress)
        check = CheckRunner(
            self.check, self.op_args or (), self.op_kwargs or {}, self.check_timeout, self.log
        )
        context = check_context(facts, self.current.attempt, self.templates_dict)
        await check.load(context)
        until = f" until {evaluator.end} at the latest" if evaluator.end else ""
        self.log.info("Running the check %s repeatedly%s", self.check, until)
        before = evaluator.state
        while (decision := evaluator.at_limit(_now())) is None:
            try:
                checked = await check(context)
            except AirflowSkipException as skip:
                return Skip(str(skip) or "the check raised AirflowSkipException")
            decision = evaluator.evaluate(checked, _now())
            if evaluator.state != before:
                before = evaluator.state
                self.log.info(
                    "The check returned result %s with action %s, %d times in a row",
                    *checked,
                    before["length"],
                )
                await self.inbox.waits.save_progress(self.current.id, before)
            if decision is not None:
                break
            await asyncio.sleep(evaluator.pause(_now()))
        return self.end(decision)

    def end(self, decision: Decision) -> Success:
        """Return the task's outcome, which contains the final result and action of the checks."""
        self.log.info("The checks ended with result %s and action %s, because %s", *decision)
        return Success(decision.as_json())

    async def evaluator(self, facts: RunFacts, state: Any) -> CheckEvaluator:
        """Return the object that evaluates the results of the checks, with its state from the inbox.

        :raises InputError: if a function that computes a limit fails.
        """
        task_id = self.current.attempt.task_id
        rules = await computed_rules(task_id, facts, CheckRules.from_json(self.rules or {}))
        return CheckEvaluator(task_id, facts, rules, state)


class HighAvailabilityPauseTrigger(BaseTrigger):
    """Waits until the next check is due. The check then runs on a worker, because no triggerer can import the check.

    :param until: the time of the next check, in seconds since the epoch.
    """

    def __init__(self, until: float = 0.0, **_older: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.until = until

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the classpath and the kwargs from which Airflow creates this trigger."""
        path = "deferrable_ops.triggers.high_availability.HighAvailabilityPauseTrigger"
        return path, {"until": self.until}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Sleep until the next check is due, but at least until the worker that ran the last check has exited."""
        earliest = 0.0 if self.task_instance is None else RESUME_AFTER_DEFER
        await asyncio.sleep(max(earliest, self.until - time.time()))
        yield TriggerEvent({"check": "due"})  # type: ignore[no-untyped-call]


class HighAvailabilityGateTrigger(TaskTrigger):
    """Skips the task of a gate, unless the check ended with the given `result` and `action`.

    :param check_task_id: the id of the HighAvailabilityOperator's task. This trigger compares the result and the action
        of that task with `result` and `action`.
    :param result: the result with which the check must have ended, ``"pass"`` or ``"fail"``.
    :param action: the action with which the check must have ended, ``"stop"`` or ``"retrigger"``; None means any
        action.
    :param fails: if True, a task that is not skipped fails; otherwise such a task succeeds.
    :param backoff: the JSON object that :meth:`RetriggerBackoff.as_json` returned; None for the default pauses. If the
        gate starts a DAG run, the trigger waits until the pause before the retrigger is over.
    :param run_facts: the JSON object that :meth:`RunFacts.as_json` returned, if a worker deferred a task that starts a
        DAG run; otherwise None.
    """

    feature: ClassVar[str] = FEATURE
    classpath: ClassVar[str] = "deferrable_ops.triggers.high_availability.HighAvailabilityGateTrigger"
    arguments: ClassVar[tuple[str, ...]] = (
        "check_task_id",
        "result",
        "action",
        "fails",
        "backoff",
        "run_facts",
    )

    def __init__(
        self,
        *,
        check_task_id: str = "",
        result: str = "",
        action: str | None = None,
        fails: bool = False,
        backoff: dict[str, Any] | None = None,
        run_facts: dict[str, Any] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.check_task_id = check_task_id
        self.result = result
        self.action = action
        self.fails = fails
        self.backoff = backoff
        self.run_facts = run_facts

    @property
    def cancellable(self) -> bool:
        """Return False, because a gate launches no external work that could be cancelled."""
        return False

    async def wait(self) -> Outcome:
        """Return the outcome of the gate. Before a retrigger, wait until the pause of the backoff is over."""
        outcome = await self._decide()
        if isinstance(outcome, Success) and outcome.value is not None:
            await self._pause(RetriggerBackoff.from_json(self.backoff or {}), outcome.value["ended_at"])
        return outcome

    async def expired(self) -> Outcome:
        """Return the outcome of the gate at once. The task's timeout is over, so the task does not wait for the pause
        to end.
        """
        return await self._decide()

    async def _pause(self, backoff: RetriggerBackoff, ended_at: float) -> None:
        # A worker with an older release of the library has deferred the task without the data of the DAG run.
        if self.run_facts is None and self.task_instance is not None and not self.task:
            return
        recent = run_facts_of(self).recent_retriggers(self.check_task_id)
        count = recent.at(datetime.fromtimestamp(ended_at, UTC), backoff.reset_after)
        until = min(ended_at + backoff.pause(count), self.current.deadline - _DEADLINE_MARGIN)
        seconds = until - await self.inbox.database.now()
        if seconds > 0:
            self.log.info(
                "The next DAG run starts in %.0f s, because the DAG was already retriggered %d times since its last "
                "run that took more than %g s; to change the delay, set retrigger_delay and retrigger_reset_after",
                seconds,
                count,
                backoff.reset_after,
            )
            await asyncio.sleep(seconds)

    async def _decide(self) -> Outcome:
        # The check has already ended, because the gate is downstream of the check.
        check = await newest_wait(self, self.check_task_id)
        outcome = None if check is None else check.outcome
        if isinstance(outcome, Success):
            decided = read_result(outcome.value)
        else:
            decided = await self._decision_of_task_state(outcome)
        if decided is None:
            return (
                Failure(f"the task {self.check_task_id} failed; read its log")
                if self.fails
                else Skip("the check ended without a result")
            )
        result, action = decided
        ended = f"the task {self.check_task_id} ended with result {result} and action {action}"
        if result != self.result or self.action not in (None, action):
            return Skip(ended)
        if self.fails:
            return Failure(ended)
        if action is not Action.RETRIGGER:
            return Success(None)
        wait = self.current if check is None else check
        return Success({"attempt": wait.id, "ended_at": wait.settled_at or self.current.created_at})

    async def cancel(self, wait: Wait) -> None:
        """Do nothing, because a gate launches no external work."""

    async def _decision_of_task_state(self, outcome: Outcome | None) -> tuple[Result, Action] | None:
        match outcome:
            case Failure():
                return None
            case Skip():
                # No gate has this action.
                return Result.PASS, Action.CONTINUE
        # The check never ran, because its upstream task failed or was skipped, or because a user set its state.
        states = await states_of_tasks(self.current.attempt, [self.check_task_id])
        if states is None:
            # In dag.test() the state is unknown. The DAG's other leaves then determine the run's state.
            return Result.PASS, Action.CONTINUE
        state = states[self.check_task_id]
        if state in _FAILED:
            return None
        action = Action.STOP if state == "success" else Action.CONTINUE
        return Result.PASS, action


async def computed_rules(task_id: str, facts: RunFacts, rules: CheckRules) -> CheckRules:
    """Call the functions that compute limits, and return the rules of a check with the computed limits.

    The functions are called in a thread, because they may block the event loop.

    :raises InputError: if a function fails.
    """
    limits = rules.limits
    if limits.runtime_function is None and limits.endtime_function is None:
        return rules
    compute = partial(compute_limits, task_id, facts, limits, rules.reference_date)
    try:
        return replace(rules, limits=await call_in_thread(compute, _LIMIT_SECONDS))
    except TimeoutError:
        raise InputError(
            f"the functions of runtime= and endtime= did not return within {_LIMIT_SECONDS:g} s; correct them"
        ) from None


def _now() -> datetime:
    return datetime.now(UTC)
