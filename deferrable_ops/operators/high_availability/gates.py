"""The gates of a check: downstream tasks that run or are skipped, depending on the check's result.

A gate that starts a DAG run ends on a worker. All other gates end in the triggerer, unless a callback needs a worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator

from deferrable_ops.high_availability.conf import check_conf, next_conf, read_conf
from deferrable_ops.high_availability.facts import RunFacts
from deferrable_ops.high_availability.results import Action, Result
from deferrable_ops.operators.base import TriggererOperator, finish_event
from deferrable_ops.operators.worker_reasons import worker_start_reason
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.high_availability.triggers import HighAvailabilityGateTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

RUN_ID_XCOM = "trigger_run_id"

# Arguments of the check that apply to its gates too.
_SHARED = (
    *("executor", "owner", "pool", "queue", "run_as_user"),
    *("on_execute_callback", "on_failure_callback", "on_retry_callback"),
    *("on_skipped_callback", "on_success_callback"),
)


class HighAvailabilityGate(TriggererOperator):
    """A task that runs only if the check ended with the given `result` and `action`; otherwise the task is skipped.

    The HighAvailabilityOperator creates these tasks.

    :param check_task_id: the task id of the check.
    :param result: the task runs only if the check ended with this result.
    :param action: the task runs only if the check ended with this action; None means any action.
    :param fails: if True, the task fails when it runs; otherwise the task succeeds.
    """

    trigger_class: ClassVar[type[TaskTrigger]] = HighAvailabilityGateTrigger
    ui_color = "#e8f3e1"

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
        """The reason why the task starts on a worker, or None. A gate's pool and queue are ignored, as a gate does not
        wait.
        """
        return worker_start_reason(self, self.trigger_class.arguments, waits=False)


class HighAvailabilityRetrigger(HighAvailabilityGate, TriggerDagRunOperator):
    """A gate that starts a DAG run. This class accepts all arguments of Airflow's TriggerDagRunOperator.

    :param reference_date: the argument `reference_date` of the check's HighAvailabilityOperator.
    """

    next_method: ClassVar[str] = "retrigger"
    template_fields: Sequence[str] = TriggerDagRunOperator.template_fields
    ui_color = TriggerDagRunOperator.ui_color

    def __init__(self, *, reference_date: str, conf: Any = None, **kwargs: Any) -> None:
        super().__init__(conf=conf, **kwargs)
        check_conf("conf", conf)
        self.reference_date = reference_date

    def trigger_kwargs(self) -> dict[str, Any]:
        """Return the kwargs of the task's trigger."""
        kwargs = super().trigger_kwargs()
        return kwargs | {
            "ends_on_worker": {**kwargs["ends_on_worker"], "success": "only a worker can start a DAG run"}
        }

    def execute(self, context: Context) -> None:
        """If the task starts on a worker, defer it to its trigger. If the trigger has ended, start the DAG run.

        :raises TaskDeferred: if the trigger has not ended yet.
        """
        self._start_run(context, super().execute(context)["attempt"])

    def retrigger(self, context: Context, event: dict[str, Any]) -> None:
        """Start the DAG run, unless an earlier attempt has started it. The id of the new DAG run depends on the
        attempt of the check's task.

        :raises DagRunTriggerException: always, if no earlier attempt has started the DAG run; Airflow then starts it.
        :raises AirflowSkipException: if the check ended with another result or action.
        """
        self._start_run(context, finish_event(event)["attempt"])

    def execute_complete(self, context: Context, event: Any) -> None:
        """Finish the task after the DAG run that it started has ended (``wait_for_completion`` with ``deferrable``)."""
        TriggerDagRunOperator.execute_complete(self, context, event)

    def _start_run(self, context: Context, attempt: str) -> None:
        facts = RunFacts.of(context)
        self.conf = next_conf(
            read_conf("conf", self.conf),
            facts,
            task_id=self.check_task_id,
            reference_date=self.reference_date,
            others=_other_check_ids(context["dag"].task_dict, self.check_task_id),
        )
        if not self.trigger_run_id:
            count = facts.retriggers(self.check_task_id) + 1
            self.trigger_run_id = f"retrigger_{count}__{attempt}"
            if context["ti"].get_dr_count(self.trigger_dag_id, run_ids=[self.trigger_run_id]):
                self.log.info(
                    "The DAG run %s exists already, because an earlier attempt of this task started it",
                    self.trigger_run_id,
                )
                context["ti"].xcom_push(key=RUN_ID_XCOM, value=self.trigger_run_id)
                return
        self.log.info("Starting the DAG run %s of the DAG %s", self.trigger_run_id or "", self.trigger_dag_id)
        start: Any = TriggerDagRunOperator.execute
        # Airflow wraps execute() and refuses calls from other methods, so call the original function.
        start.__wrapped__(self, context)


@dataclass(frozen=True, slots=True)
class Gates:
    """The four gates of a check to which users can attach downstream tasks."""

    stop_pass: HighAvailabilityGate
    stop_fail: HighAvailabilityGate
    retrigger_pass: HighAvailabilityRetrigger
    retrigger_fail: HighAvailabilityRetrigger


def make_gates(
    check: Any, given: Mapping[str, Any], on_pass: Mapping[str, Any], on_fail: Mapping[str, Any]
) -> Gates:
    """Create the gates of a check in the check's DAG and task group, and place the gates downstream of the check.

    :param check: the HighAvailabilityOperator.
    :param given: the arguments of the check. Some of these arguments apply to the gates too.
    :param on_pass: arguments of the TriggerDagRunOperator that starts the DAG again after PASS.
    :param on_fail: arguments of the TriggerDagRunOperator that starts the DAG again after FAIL.
    """
    dag = check.get_dag()
    shared = {name: given[name] for name in _SHARED if name in given}
    # Each failed run is reported only once, by the gate that fails in every failed run.
    silent = {name: value for name, value in shared.items() if name != "on_failure_callback"}
    name = _without_group(check)

    def common(suffix: str, result: Result) -> dict[str, Any]:
        return {
            "task_id": f"{name}-{suffix}",
            "check_task_id": check.task_id,
            "result": result,
            "dag": dag,
            "task_group": check.task_group,
        }

    def stop(result: Result, **arguments: Any) -> HighAvailabilityGate:
        suffix = f"stop-{result.value}"
        return HighAvailabilityGate(
            **{**arguments, **common(suffix, result)}, action=Action.STOP, trigger_rule="all_success"
        )

    def retrigger(result: Result, wanted: Mapping[str, Any]) -> HighAvailabilityRetrigger:
        default = {"trigger_dag_id": dag.dag_id, "trigger_rule": "all_success", **shared}
        return HighAvailabilityRetrigger(
            **{**default, **wanted, **common(f"retrigger-{result.value}", result)},
            action=Action.RETRIGGER,
            reference_date=check.reference_date,
        )

    gates = Gates(
        stop(Result.PASS, **shared),
        stop(Result.FAIL, fails=True, **silent),
        retrigger(Result.PASS, on_pass),
        retrigger(Result.FAIL, on_fail),
    )
    # Airflow derives a run's state from its leaf tasks. This gate stays a leaf, even if users attach tasks to other
    # gates.
    force_fail = HighAvailabilityGate(
        **{**shared, **common("force-dag-fail", Result.FAIL)},
        action=None,
        fails=True,
        trigger_rule="all_done",
    )
    check >> [gates.stop_pass, gates.stop_fail, gates.retrigger_pass, gates.retrigger_fail, force_fail]
    [gates.stop_fail, gates.retrigger_fail] >> force_fail
    return gates


def _without_group(check: Any) -> str:
    group, task_id = check.task_group, str(check.task_id)
    if group is None or not group.node_id or not group.prefix_group_id:
        return task_id
    return task_id.removeprefix(f"{group.node_id}.")


def _other_check_ids(tasks: Mapping[str, Any], own: str) -> list[str]:
    gates = [task for task in tasks.values() if isinstance(task, HighAvailabilityRetrigger)]
    return sorted({gate.check_task_id for gate in gates} - {own})
