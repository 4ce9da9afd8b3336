"""What a DAG run with a supervisord decides by its own tasks' states: to end it or not, and to say what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from deferrable_ops.high_availability.results import Action, read_result
from deferrable_ops.inbox import Wait
from deferrable_ops.outcome import Failure, Outcome, Skip, Success
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.dag_run import newest_wait, run_facts_of, states_of_tasks

FEATURE: Final = "supervisor"

_DID_NOTHING: Final = frozenset({"skipped", "upstream_failed", "removed"})


class _GateTrigger(TaskTrigger):
    """A trigger that reads and touches nothing outside."""

    feature: ClassVar[str] = FEATURE

    @property
    def cancellable(self) -> bool:
        """Whether there is anything to stop."""
        return False

    async def cancel(self, wait: Wait) -> None:
        """Stop nothing."""


class SupervisorTeardownTrigger(_GateTrigger):
    """Succeeds where supervisord's run ends with this DAG run, and is skipped where it goes on.

    :param first_task_id: the task that touches supervisord first.
    :param check_task_id: the one that watches its programs.
    :param retriggers: those that start the DAG again.
    :param stop_on_exit: the configuration's.
    :param run_facts: what :meth:`RunFacts.as_json` wrote, where a worker deferred the task.
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
        """Read what the run came to; it is over but for the teardown."""
        if not self.stop_on_exit:
            return Skip("stop_on_exit=False: supervisord and its programs go on")
        states = await states_of_tasks(self.current.attempt, [self.first_task_id, *self.retriggers])
        if await self._is_retriggered(states):
            return Skip("the DAG was started again: its next run takes supervisord over as it is")
        began = states is None or states[self.first_task_id] not in _DID_NOTHING
        if not began and not run_facts_of(self).retriggers(self.check_task_id):
            return Skip("this run has not touched supervisord")
        return Success(None)

    async def _is_retriggered(self, states: Mapping[str, str | None] | None) -> bool:
        if states is not None:
            return any(states[task_id] == "success" for task_id in self.retriggers)
        check = await newest_wait(self, self.check_task_id)
        if check is None or not isinstance(check.outcome, Success):
            return False
        decided = read_result(check.outcome.value)
        return decided is not None and decided[1] is Action.RETRIGGER


class SupervisorAlarmTrigger(_GateTrigger):
    """Fails where a step has, or where a user ended the run as failed; is skipped otherwise.

    Airflow lets teardowns go on when a user ends a run, and judges the run only then, by its leaves; but those it has
    skipped, so that a run which was marked as failed would be a success.

    :param task_ids: the steps.
    :param leaf_task_id: a task that runs in every run, if only to be skipped.
    """

    classpath: ClassVar[str] = "deferrable_ops.triggers.supervisor.SupervisorAlarmTrigger"
    arguments: ClassVar[tuple[str, ...]] = ("task_ids", "leaf_task_id")

    def __init__(self, *, task_ids: Sequence[str] = (), leaf_task_id: str = "", **base: Any) -> None:
        super().__init__(**base)
        self.task_ids = list(task_ids)
        self.leaf_task_id = leaf_task_id

    async def wait(self) -> Outcome:
        """Read which tasks failed."""
        states = await states_of_tasks(self.current.attempt, None)
        if states is None:
            failed = [task_id for task_id in self.task_ids if await self._failed_here(task_id)]
        else:
            failed = [task_id for task_id in self.task_ids if states.get(task_id) == "failed"]
        if failed:
            return Failure(f"failed: {', '.join(failed)}")
        if states is not None and await self._is_ended_by_user(states):
            return Failure("a user ended this run before its programs did")
        return Skip("no step failed")

    async def _failed_here(self, task_id: str) -> bool:
        wait = await newest_wait(self, task_id)
        return wait is not None and isinstance(wait.outcome, Failure)

    async def _is_ended_by_user(self, states: Mapping[str, str | None]) -> bool:
        """Return whether a user marked the run as failed: then what ran was, and the leaf was skipped by Airflow."""
        if states.get(self.leaf_task_id) != "skipped" or "failed" not in states.values():
            return False
        return await newest_wait(self, self.leaf_task_id) is None


class SupervisorSwitchTrigger(_GateTrigger):
    """Skips its task: what is behind it is done only when a user clears that.

    :param clears: the task that a user clears.
    """

    classpath: ClassVar[str] = "deferrable_ops.triggers.supervisor.SupervisorSwitchTrigger"
    arguments: ClassVar[tuple[str, ...]] = ("clears",)

    def __init__(self, *, clears: str = "", **base: Any) -> None:
        super().__init__(**base)
        self.clears = clears

    async def wait(self) -> Outcome:
        """Say how it is used."""
        return Skip(f"clear the task {self.clears}, and only that, to kill supervisord and all its programs")
