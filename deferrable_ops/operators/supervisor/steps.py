"""The tasks of a supervisord: its steps, the check of its programs, and what decides between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.configuration import conf

from deferrable_ops.high_availability.facts import RunFacts
from deferrable_ops.operators.base import TriggererOperator
from deferrable_ops.operators.high_availability.operator import HighAvailabilityOperator
from deferrable_ops.operators.worker_reasons import worker_start_reason
from deferrable_ops.supervisord import SupervisorAirflowConfiguration
from deferrable_ops.triggers.base import TaskTrigger
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

_ALONE = {"retries": 0, "depends_on_past": False, "wait_for_downstream": False}


def queue_reason(cfg: SupervisorAirflowConfiguration) -> str | None:
    """Return why a task must start on a worker so that it reaches the right triggerer; None where it need not."""
    if is_remote(cfg) or not conf.getboolean("triggerer", "queues_enabled", fallback=False):
        return None
    return "supervisord runs on a triggerer's host, and only a worker hands a task to the triggerers of its queue"


class SupervisorStepOperator(TriggererOperator):
    """Takes one step with a supervisord. The XCom says what was found and done.

    :param step: its name, as ``start-supervisor``.
    :param cfg: the configuration. It is encrypted where it holds a secret, and is no template.
    :param check_task_id: the task that watches the programs.
    :param rules: of that task; where its limits are over, a step that starts does nothing.
    :param gate_task_id: the task that decides whether a step that stops is due; before a force-kill, the one that is
        skipped.
    :param skip_because: why the step is always skipped; None: it is not.
    :raises InputError: the configuration cannot be used; the message names the field and the fix.
    """

    trigger_class: ClassVar[type[TaskTrigger]] = SupervisorDueStepTrigger
    template_fields: Sequence[str] = ()
    ui_color = "#f3ead8"

    run_facts: dict[str, Any] | None = None  # on a worker, which defers the task

    def __init__(
        self,
        *,
        step: Any,
        cfg: SupervisorAirflowConfiguration,
        check_task_id: str,
        rules: dict[str, Any] | None = None,
        gate_task_id: str | None = None,
        skip_because: str | None = None,
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
        self._queue_reason = queue_reason(cfg)

    @property
    def worker_start_reason(self) -> str | None:
        """What makes this task start on a worker, which then defers it; None when it starts in the triggerer."""
        return self._queue_reason or super().worker_start_reason

    def execute(self, context: Context) -> Any:
        """Defer the task to its trigger.

        :raises TaskDeferred: the step is not taken yet.
        """
        self.run_facts = RunFacts.of(context).as_json()
        return super().execute(context)


class SupervisorCheckOperator(HighAvailabilityOperator):
    """Watches the programs of a supervisord, as a HighAvailabilityOperator does with its check.

    :param cfg: the configuration, which has the interval, the timeout, the limits and the policies.
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
            "reference_date": cfg.reference_date,
            # Where nothing was started there is nothing to watch, and nothing to start again.
            "trigger_rule": "all_success",
        }
        super().__init__(python_callable="", **{**declared, **kwargs})
        self.configuration = serialize_configuration(cfg)
        self._queue_reason = queue_reason(cfg)

    @property
    def worker_start_reason(self) -> str | None:
        """What makes this task start on a worker, which then defers it; None when it starts in the triggerer."""
        return self._queue_reason or super().worker_start_reason

    def _set_check(self, given: Any) -> None:
        # The trigger knows how to look at programs; nothing else is called.
        self.python_callable = self.check = self.worker_check_reason = None


class _Gate(TriggererOperator):
    """A task that reads what others came to, and ends at once."""

    ui_color = "#e8f3e1"
    template_fields: Sequence[str] = ()

    def __init__(self, **kwargs: Any) -> None:
        # It never waits and never fails by accident, so there is nothing to try again, or to wait for in earlier runs.
        super().__init__(**{**kwargs, **_ALONE})

    @property
    def worker_start_reason(self) -> str | None:
        """What makes this task start on a worker; its pool and its queue do not, because it does not wait."""
        return worker_start_reason(self, self.trigger_class.arguments, waits=False)


class SupervisorTeardownGate(_Gate):
    """Succeeds where supervisord's run ends with this DAG run; is skipped where it goes on.

    :param first_task_id: the task that touches supervisord first.
    :param check_task_id: the one that watches its programs.
    :param retriggers: those that start the DAG again.
    """

    trigger_class: ClassVar[type[TaskTrigger]] = SupervisorTeardownTrigger

    run_facts: dict[str, Any] | None = None  # on a worker, which defers the task

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
        """Defer the task to its trigger.

        :raises TaskDeferred: nothing is decided yet.
        """
        self.run_facts = RunFacts.of(context).as_json()
        return super().execute(context)


class SupervisorAlarm(_Gate):
    """Fails where one of the steps has, and names it, or where a user ended the run as failed.

    :param task_ids: of the steps.
    :param leaf_task_id: a task that runs in every run, if only to be skipped.
    """

    trigger_class: ClassVar[type[TaskTrigger]] = SupervisorAlarmTrigger

    def __init__(self, *, task_ids: Sequence[str], leaf_task_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.task_ids = list(task_ids)
        self.leaf_task_id = leaf_task_id


class SupervisorSwitch(_Gate):
    """Is always skipped: what is behind it is done only when a user clears that.

    :param clears: the task that a user clears.
    """

    trigger_class: ClassVar[type[TaskTrigger]] = SupervisorSwitchTrigger

    def __init__(self, *, clears: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.clears = clears
