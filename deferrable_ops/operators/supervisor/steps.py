"""The operators of a Supervisor: the operator that runs a step, the operator that watches the programs, and the
operators of the gate tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import TaskDeferralTimeout

from deferrable_ops.high_availability.facts import RunFacts
from deferrable_ops.operators.base import TriggererOperator
from deferrable_ops.operators.high_availability.operator import HighAvailabilityOperator
from deferrable_ops.operators.worker_reasons import worker_start_reason
from deferrable_ops.supervisord import SupervisorAirflowConfiguration
from deferrable_ops.triggers.base import DEFAULT_TIMEOUT, TaskTrigger
from deferrable_ops.triggers.supervisor.check_trigger import SupervisorCheckTrigger
from deferrable_ops.triggers.supervisor.conditional_step import SupervisorDueStepTrigger
from deferrable_ops.triggers.supervisor.configuration import is_remote, serialize_configuration, step_timeout
from deferrable_ops.triggers.supervisor.gate_triggers import (
    SupervisorAlarmTrigger,
    SupervisorSwitchTrigger,
    SupervisorTeardownTrigger,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

# A gate does not wait and is not expected to fail, so it needs no retries. It also does not depend on earlier DAG runs.
_GATE_ARGUMENTS = {"retries": 0, "depends_on_past": False, "wait_for_downstream": False}


def queue_reason(cfg: SupervisorAirflowConfiguration) -> str | None:
    """Return the reason why the task must start on a worker; None if any triggerer can run the task.

    The worker defers the task to a triggerer that belongs to the task's queue.
    """
    if is_remote(cfg) or not conf.getboolean("triggerer", "queues_enabled", fallback=False):
        return None
    return "supervisord runs on a triggerer's host, and only a worker can pass a task to the triggerers of its queue"


class SupervisorStepOperator(TriggererOperator):
    """Runs one step of a Supervisor. The task's XCom describes what the step did.

    :param step: name of the step, for example ``start-supervisor``.
    :param cfg: the configuration of the supervisord, without Jinja templates. If the configuration contains
        secrets, the serialized DAG contains the configuration only in encrypted form.
    :param check_task_id: the id of the task that watches the programs. With this id, the step reads from the DAG run
        how many times that task has triggered the DAG again.
    :param rules: for a step that starts programs, the limits ``runtime`` and ``endtime`` of the task `check_task_id`,
        from :meth:`CheckRules.as_json`; None for all other steps. When one of these limits is over, such a step
        succeeds without starting anything.
    :param gate_task_id: the id of the task that decides whether this step runs; None if this step does not depend on
        such a task. For a teardown step, this is the task ``teardown``. For the step "force-kill", this is the task
        "force-kill-dag", which always skips itself.
    :param skip_because: the reason, as text for the task's log, why this step is skipped in every DAG run; None if this
        step can run.
    :param tears_down: whether the library's own teardown steps stop the supervisord. If True and supervisord still runs
        after the end of the DAG run, a triggerer stops supervisord.
    :raises InputError: if the configuration is invalid. The error message shows which field is wrong and how to correct
        it.
    """

    trigger_class: ClassVar[type[TaskTrigger]] = SupervisorDueStepTrigger
    template_fields: Sequence[str] = ()

    # Set on a worker, before it defers the task.
    run_facts: dict[str, Any] | None = None

    def __init__(
        self,
        *,
        step: Any,
        cfg: SupervisorAirflowConfiguration,
        check_task_id: str,
        rules: dict[str, Any] | None = None,
        gate_task_id: str | None = None,
        skip_because: str | None = None,
        tears_down: bool = True,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("timeout", step_timeout(cfg, step))
        super().__init__(**kwargs)
        self.step = step
        self.configuration = serialize_configuration(cfg)
        self.check_task_id = check_task_id
        self.rules = rules
        self.gate_task_id = gate_task_id
        self.skip_because = skip_because
        self.tears_down = tears_down
        self._queue_reason = queue_reason(cfg)

    @property
    def worker_start_reason(self) -> str | None:
        """The reason why the task starts on a worker and is then deferred; None if it starts in the triggerer."""
        return self._queue_reason or super().worker_start_reason

    def execute(self, context: Context) -> Any:
        """If this attempt of the task already has an outcome, return the task's result; otherwise defer the task to its
        trigger.

        :raises TaskDeferred: if this attempt of the task has no outcome yet.
        """
        self.run_facts = RunFacts.of(context).as_json()
        return super().execute(context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Return the task's result. If Airflow's timeout has passed, defer the task again, because the step's own
        timeout counts only the time in which a triggerer runs the step.

        :raises TaskDeferred: if Airflow's timeout has passed before the step has ended.
        """
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            self.log.warning("No triggerer has ended this step within Airflow's timeout; deferring it again")
            return self.execute(context)

    @property
    def airflow_timeout(self) -> float:
        """The timeout in seconds after which Airflow itself ends the deferral: 7 days, or ``execution_timeout``."""
        if self.execution_timeout is None:
            return DEFAULT_TIMEOUT
        return min(DEFAULT_TIMEOUT, self.execution_timeout.total_seconds())


class SupervisorCheckOperator(HighAvailabilityOperator):
    """A HighAvailabilityOperator that watches the programs of a supervisord.

    :param cfg: the configuration of the supervisord, with the poll interval, the timeout, the limits and the policies
        of this task.
    """

    trigger_class: ClassVar[type[TaskTrigger]] = SupervisorCheckTrigger
    template_fields: Sequence[str] = ()

    def __init__(self, *, cfg: SupervisorAirflowConfiguration, **kwargs: Any) -> None:
        declared = {
            "poke_interval": cfg.check_interval,
            "timeout": cfg.check_timeout,
            "runtime": cfg.runtime,
            "endtime": cfg.endtime,
            "maxretrigger": cfg.maxretrigger,
            "retrigger_delay": cfg.retrigger_delay,
            "retrigger_reset_after": cfg.retrigger_reset_after,
            "reference_date": cfg.reference_date,
            # If a start step failed, the programs do not run, so the check cannot watch them.
            "trigger_rule": "all_success",
        }
        super().__init__(python_callable="", **{**declared, **kwargs})
        self.configuration = serialize_configuration(cfg)
        self._queue_reason = queue_reason(cfg)

    @property
    def worker_start_reason(self) -> str | None:
        """The reason why the task starts on a worker and is then deferred; None if it starts in the triggerer."""
        return self._queue_reason or super().worker_start_reason

    def _set_check(self, given: Any) -> None:
        # The trigger itself reads the programs' states, so there is no function to call.
        self.python_callable = self.check = self.worker_check_reason = None


class _Gate(TriggererOperator):
    """A task that does not wait: it reads the states of other tasks, and then succeeds, fails or skips itself."""

    template_fields: Sequence[str] = ()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, **_GATE_ARGUMENTS})

    @property
    def worker_start_reason(self) -> str | None:
        """The reason why the task starts on a worker; None if it starts in the triggerer.

        The task's pool and queue are never a reason to start on a worker, because the task ends at once.
        """
        return worker_start_reason(self, self.trigger_class.arguments, waits=False)


class SupervisorTeardownGate(_Gate):
    """A task that decides whether supervisord stops at the end of this DAG run. The task succeeds if supervisord must
    stop, and is skipped if supervisord must keep running.

    :param first_task_id: the id of the first task of the Supervisor. If that task did not run, this DAG run did not use
        supervisord, and supervisord keeps running.
    :param check_task_id: the id of the task that watches the programs.
    :param retriggers: the ids of the tasks that trigger the DAG again. If one of them succeeded, supervisord keeps
        running for the next DAG run.
    :param stop_on_exit: the field ``stop_on_exit`` of the configuration; if it is False, supervisord keeps running.
    """

    trigger_class: ClassVar[type[TaskTrigger]] = SupervisorTeardownTrigger

    # Set on a worker, before it defers the task.
    run_facts: dict[str, Any] | None = None

    def __init__(
        self,
        *,
        first_task_id: str,
        check_task_id: str,
        retriggers: Sequence[str],
        stop_on_exit: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.first_task_id = first_task_id
        self.check_task_id = check_task_id
        self.retriggers = list(retriggers)
        self.stop_on_exit = stop_on_exit

    def execute(self, context: Context) -> Any:
        """If this attempt of the task already has an outcome, return the task's result; otherwise defer the task to its
        trigger.

        :raises TaskDeferred: if this attempt of the task has no outcome yet.
        """
        self.run_facts = RunFacts.of(context).as_json()
        return super().execute(context)


class SupervisorAlarm(_Gate):
    """A task that fails if a step failed or if a user marked the DAG run as failed.

    The error message contains the task ids of the failed steps.

    :param task_ids: the ids of the tasks that run the steps; this task fails if one of them failed.
    :param leaf_task_id: the id of a task that runs in every DAG run, except after a check that ended with PASS. If
        Airflow skipped that task before it started, a user has marked the DAG run as failed.
    :param check_task_id: the id of the task that watches the programs.
    """

    trigger_class: ClassVar[type[TaskTrigger]] = SupervisorAlarmTrigger

    def __init__(
        self, *, task_ids: Sequence[str], leaf_task_id: str, check_task_id: str, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.task_ids = list(task_ids)
        self.leaf_task_id = leaf_task_id
        self.check_task_id = check_task_id


class SupervisorSwitch(_Gate):
    """A task that always skips itself, so that its downstream task runs only if a user clears that downstream task.

    :param clears: the id of the downstream task, for the message that shows which task a user must clear.
    """

    trigger_class: ClassVar[type[TaskTrigger]] = SupervisorSwitchTrigger

    def __init__(self, *, clears: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.clears = clears
