"""The steps that prepare, start and stop a supervisord and its programs: each a task of its own."""

from __future__ import annotations

from typing import Any, ClassVar

from deferrable_ops.inbox import Wait
from deferrable_ops.outcome import Outcome
from deferrable_ops.triggers.base import TaskTrigger


class SupervisorStepTrigger(TaskTrigger):
    """Takes one step with a supervisord. Repeated at any moment, also while another does the same, it does no harm.

    :param step: one of ``supervisor_configuration.STEPS``.
    :param configuration: what ``supervisor_configuration.seal_configuration`` made.
    :param check_task_id: the task that watches the programs: by its name a DAG run tells that it was retriggered.
    :param run_facts: what :meth:`RunFacts.as_json` wrote, where a worker deferred the task; None where the scheduler
        did, because Airflow tells then. Only ``start-programs`` needs it.
    """

    feature: ClassVar[str] = "supervisor"
    classpath: ClassVar[str] = "deferrable_ops.triggers.supervisor.SupervisorStepTrigger"
    arguments: ClassVar[tuple[str, ...]] = ("step", "configuration", "check_task_id", "run_facts")

    def __init__(
        self,
        *,
        step: str = "",
        configuration: str = "",
        check_task_id: str = "",
        run_facts: dict[str, Any] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.step = step
        self.configuration = configuration
        self.check_task_id = check_task_id
        self.run_facts = run_facts

    async def wait(self) -> Outcome:
        """Take the step, and return what it found and did."""
        raise NotImplementedError

    async def cancel(self, wait: Wait) -> None:
        """Stop what a task that a user ended has started, where ``stop_on_exit`` says so."""
        raise NotImplementedError
