"""A gate of a check: a downstream task that runs or is skipped, depending on the result of the check."""

from __future__ import annotations

from typing import Any, ClassVar

from deferrable_ops.high_availability.results import Action, Result
from deferrable_ops.operators.base import TriggererOperator
from deferrable_ops.operators.worker_reasons import worker_start_reason
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.high_availability.triggers import HighAvailabilityGateTrigger


class HighAvailabilityGate(TriggererOperator):
    """A task that runs only if the check ended with the given `result` and `action`; otherwise the task is skipped.

    The HighAvailabilityOperator creates these tasks.

    :param check_task_id: the id of the HighAvailabilityOperator's task, which runs the check.
    :param result: the task runs only if the check ended with this result.
    :param action: the task runs only if the check ended with this action; None means any action.
    :param fails: if True, the task fails when it runs; otherwise the task succeeds.
    """

    trigger_class: ClassVar[type[TaskTrigger]] = HighAvailabilityGateTrigger

    # Only a gate that starts a DAG run sets these attributes.
    backoff: dict[str, Any] | None = None
    run_facts: dict[str, Any] | None = None

    def __init__(
        self, *, check_task_id: str, result: Result, action: Action | None, fails: bool = False, **kwargs: Any
    ) -> None:
        # A gate does not wait, and fails only if it has to make the run fail. So it needs no retries and ignores
        # earlier runs.
        alone = {"retries": 0, "depends_on_past": False, "wait_for_downstream": False}
        super().__init__(**{**kwargs, **alone})
        self.check_task_id = check_task_id
        self.result = result.value
        self.action = None if action is None else action.value
        self.fails = fails

    @property
    def worker_start_reason(self) -> str | None:
        """The reason why the task starts on a worker; None if the task starts in the triggerer.

        The pool and the queue of a gate do not make the gate start on a worker, because a gate ends at once.
        """
        return worker_start_reason(self, self.trigger_class.arguments, waits=False)
