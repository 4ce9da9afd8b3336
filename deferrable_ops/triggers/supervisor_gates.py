"""What a DAG run with a supervisord decides by its own tasks' states: to end it or not, and to say what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability.facts import RunFacts
from deferrable_ops.high_availability.results import Action, read_result
from deferrable_ops.inbox import Wait
from deferrable_ops.inbox.ownership import has_newer_attempt
from deferrable_ops.inbox.schema import waits
from deferrable_ops.outcome import Failure, Outcome, Skip, Success
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.task_states import ask_supervisor, states_of

FEATURE: Final = "supervisor"

_DID_NOTHING: Final = frozenset({"skipped", "upstream_failed", "removed"})
_FAILED: Final = frozenset({"failed", "upstream_failed"})


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

    classpath: ClassVar[str] = "deferrable_ops.triggers.supervisor_gates.SupervisorTeardownTrigger"
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
        states = await states_of_tasks(self, [self.first_task_id, *self.retriggers])
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
    """Fails, and names those tasks of the run that failed.

    :param task_ids: of which.
    """

    classpath: ClassVar[str] = "deferrable_ops.triggers.supervisor_gates.SupervisorAlarmTrigger"
    arguments: ClassVar[tuple[str, ...]] = ("task_ids",)

    def __init__(self, *, task_ids: Sequence[str] = (), **base: Any) -> None:
        super().__init__(**base)
        self.task_ids = list(task_ids)

    async def wait(self) -> Outcome:
        """Read which tasks failed."""
        states = await states_of_tasks(self, self.task_ids) or {}
        failed = [task_id for task_id, state in states.items() if state == "failed"]
        behind = [task_id for task_id, state in states.items() if state in _FAILED]
        return Failure(f"failed: {', '.join(failed or behind) or 'a step of supervisord'}")


class SupervisorSwitchTrigger(_GateTrigger):
    """Skips its task: what is behind it is done only when a user clears that.

    :param clears: the task that a user clears.
    """

    classpath: ClassVar[str] = "deferrable_ops.triggers.supervisor_gates.SupervisorSwitchTrigger"
    arguments: ClassVar[tuple[str, ...]] = ("clears",)

    def __init__(self, *, clears: str = "", **base: Any) -> None:
        super().__init__(**base)
        self.clears = clears

    async def wait(self) -> Outcome:
        """Say how it is used."""
        return Skip(f"clear the task {self.clears}, and only that, to kill supervisord and all its programs")


async def newest_wait(trigger: TaskTrigger, task_id: str) -> Wait | None:
    """Return what the inbox has of the newest attempt of another task of a trigger's DAG run."""
    attempt = trigger.current.attempt
    found = await trigger.inbox.waits.find(
        waits.c.dag_id == attempt.dag_id,
        waits.c.run_id == attempt.run_id,
        waits.c.task_id == task_id,
        waits.c.map_index == attempt.map_index,
        ~has_newer_attempt(),
    )
    return max(found, key=lambda wait: wait.created_at, default=None)


async def states_of_tasks(trigger: TaskTrigger, task_ids: Sequence[str]) -> Mapping[str, str | None] | None:
    """Return the states of tasks of a trigger's DAG run by their ids; None where nobody tells, in ``dag.test()``."""
    from airflow.sdk.execution_time import task_runner

    if not hasattr(getattr(task_runner, "SUPERVISOR_COMMS", None), "asend"):
        return None
    own = trigger.current.attempt
    asked = {
        task_id: type(own)("", 0, own.dag_id, own.run_id, task_id, map_index=own.map_index)
        for task_id in task_ids
    }
    states = await states_of(asked.values(), ask_supervisor)
    return {task_id: states[attempt] for task_id, attempt in asked.items()}


def run_facts_of(trigger: Any) -> RunFacts:
    """Return what there is to know of a trigger's DAG run.

    :param trigger: a TaskTrigger with an argument ``run_facts``.
    :raises InputError: nobody told the trigger of it.
    """
    if trigger.run_facts is not None:
        return RunFacts.from_json(trigger.run_facts)
    if trigger.task_instance is None:  # a test of a user's, in which there is no DAG run
        attempt = trigger.current.attempt
        return RunFacts(attempt.dag_id, attempt.run_id, "manual", {})
    if not trigger.task:
        raise InputError("nobody told the trigger of its DAG run; clear the task")
    return RunFacts.of(trigger.task_instance.get_template_context())
