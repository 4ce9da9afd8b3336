"""Triggers that read the states of other tasks in the same DAG run, and then end or skip their own task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from deferrable_ops.high_availability.results import Action, CheckResult, Result, read_result
from deferrable_ops.inbox import Wait
from deferrable_ops.outcome import Failure, Outcome, Skip, Success
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.dag_run import newest_wait, run_facts_of, states_of_tasks

_NOT_RUN_STATES: Final = frozenset({"skipped", "upstream_failed", "removed"})


class _GateTrigger(TaskTrigger):
    """A trigger that only reads the states of other tasks, and starts no external work."""

    feature: ClassVar[str] = "supervisor"

    @property
    def cancellable(self) -> bool:
        """Return False, because this trigger starts no external work that could be cancelled."""
        return False

    async def cancel(self, wait: Wait) -> None:
        """Do nothing, because this trigger starts no external work that could be cancelled."""


class SupervisorTeardownTrigger(_GateTrigger):
    """Decides whether supervisord must stop at the end of this DAG run. If supervisord must stop, the trigger's task
    succeeds; otherwise the task is skipped.

    :param first_task_id: the id of the first task of the Supervisor. If that task did not run, this DAG run did not use
        supervisord, and supervisord keeps running.
    :param check_task_id: the id of the task that watches the programs.
    :param retriggers: the ids of the tasks that trigger the DAG again. If one of these tasks succeeded, supervisord
        keeps running for the next DAG run.
    :param stop_on_exit: the field ``stop_on_exit`` of the configuration. If False, supervisord keeps running.
    :param run_facts: the data of the DAG run, from :meth:`RunFacts.as_json`, if a worker deferred the task. If the
        scheduler deferred the task, `run_facts` is None; then Airflow gives the trigger a task instance, and the
        trigger reads the data of the DAG run from this task instance.
    """

    classpath: ClassVar[str] = "deferrable_ops.triggers.supervisor.SupervisorTeardownTrigger"
    arguments: ClassVar[tuple[str, ...]] = (
        "first_task_id",
        "check_task_id",
        "retriggers",
        "stop_on_exit",
        "run_facts",
    )

    def __init__(
        self,
        *,
        first_task_id: str = "",
        check_task_id: str = "",
        retriggers: Sequence[str] = (),
        stop_on_exit: bool = True,
        run_facts: dict[str, Any] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.first_task_id = first_task_id
        self.check_task_id = check_task_id
        self.retriggers = list(retriggers)
        self.stop_on_exit = stop_on_exit
        self.run_facts = run_facts

    async def wait(self) -> Outcome:
        """Decide from the states of other tasks whether supervisord must stop. Return a Success if supervisord must
        stop; otherwise return a Skip.

        The other tasks have already ended, because they are upstream of this trigger's task.
        """
        if not self.stop_on_exit:
            return Skip("supervisord and its programs keep running, because stop_on_exit=False")
        states = await states_of_tasks(self.current.attempt, [self.first_task_id, *self.retriggers])
        if await self._is_retriggered(states):
            return Skip("the DAG was started again, and its next run takes over the running supervisord")
        started = states is None or states[self.first_task_id] not in _NOT_RUN_STATES
        if not started and not run_facts_of(self).retriggers(self.check_task_id):
            return Skip("this run did not use supervisord")
        return Success(None)

    async def _is_retriggered(self, states: Mapping[str, str | None] | None) -> bool:
        if states is not None:
            return any(states[task_id] == "success" for task_id in self.retriggers)
        check = await newest_wait(self, self.check_task_id)
        decided = None if check is None else _decision_of(check)
        return decided is not None and decided[1] is Action.RETRIGGER


class SupervisorAlarmTrigger(_GateTrigger):
    """Fails its task if a step failed, or if a user marked the DAG run as failed; otherwise skips its task.

    When a user marks a DAG run as failed, Airflow skips the tasks that have not started, but still runs the teardown
    tasks. After that, Airflow computes the state of the DAG run from its leaf tasks. If all leaf tasks were skipped,
    the DAG run would become a success. Therefore this trigger fails its own task, which makes the DAG run failed.

    :param task_ids: the ids of the tasks that run the steps. If one of these tasks failed, the trigger fails its own
        task.
    :param leaf_task_id: the id of a task that runs in every DAG run, except after a check that ended with PASS. If
        Airflow skipped that task before it started, a user has marked the DAG run as failed.
    :param check_task_id: the id of the task that watches the programs.
    """

    classpath: ClassVar[str] = "deferrable_ops.triggers.supervisor.SupervisorAlarmTrigger"
    arguments: ClassVar[tuple[str, ...]] = ("task_ids", "leaf_task_id", "check_task_id")

    def __init__(
        self,
        *,
        task_ids: Sequence[str] = (),
        leaf_task_id: str = "",
        check_task_id: str = "",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.task_ids = list(task_ids)
        self.leaf_task_id = leaf_task_id
        self.check_task_id = check_task_id

    async def wait(self) -> Outcome:
        """Return a Failure if a step failed, or if a user marked the DAG run as failed; otherwise return a Skip."""
        states = await states_of_tasks(self.current.attempt, None)
        if states is None:
            failed = [task_id for task_id in self.task_ids if await self._has_failed(task_id)]
        else:
            failed = [task_id for task_id in self.task_ids if states.get(task_id) == "failed"]
        if failed:
            return Failure(f"failed steps: {', '.join(failed)}; read their logs")
        if states is not None and await self._is_ended_by_user(states):
            return Failure("a user marked this run as failed while its programs were running")
        return Skip("no step failed")

    async def _has_failed(self, task_id: str) -> bool:
        wait = await newest_wait(self, task_id)
        return wait is not None and isinstance(wait.outcome, Failure)

    async def _is_ended_by_user(self, states: Mapping[str, str | None]) -> bool:
        """Return whether a user marked the DAG run as failed. The method returns True if a task of the DAG run has
        failed, and Airflow skipped the leaf task before it started.
        """
        if states.get(self.leaf_task_id) != "skipped" or "failed" not in states.values():
            return False
        check = await newest_wait(self, self.check_task_id)
        decided = None if check is None else _decision_of(check)
        if decided is not None and decided[0] is Result.PASS:
            # The scheduler skips the leaf task after PASS, see HighAvailabilityTrigger.before_end().
            return False
        return await newest_wait(self, self.leaf_task_id) is None


class SupervisorSwitchTrigger(_GateTrigger):
    """Always skips its task. Therefore the downstream task runs only after a user has cleared that downstream task.

    :param clears: the id of the downstream task. The skip message shows this id, so that a user knows which task to
        clear.
    """

    classpath: ClassVar[str] = "deferrable_ops.triggers.supervisor.SupervisorSwitchTrigger"
    arguments: ClassVar[tuple[str, ...]] = ("clears",)

    def __init__(self, *, clears: str = "", **base: Any) -> None:
        super().__init__(**base)
        self.clears = clears

    async def wait(self) -> Outcome:
        """Return a Skip with a reason that describes how to kill supervisord."""
        return Skip(
            f"clear the task {self.clears!r}, and no other task, to kill supervisord and all its programs"
        )


def _decision_of(check: Wait) -> CheckResult | None:
    return read_result(check.outcome.value) if isinstance(check.outcome, Success) else None
