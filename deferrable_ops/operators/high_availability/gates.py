"""Creates the gates of a check, which are tasks downstream of the check.

A gate that starts a DAG run ends on a worker. All other gates end in the triggerer, unless a callback needs a worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deferrable_ops.high_availability.results import Action, Result
from deferrable_ops.operators.high_availability.gate import HighAvailabilityGate

if TYPE_CHECKING:
    from deferrable_ops.operators.high_availability.retrigger import HighAvailabilityRetrigger

# Arguments of the check that apply to its gates too.
_SHARED = (
    *("executor", "owner", "pool", "queue", "run_as_user"),
    *("on_execute_callback", "on_failure_callback", "on_retry_callback"),
    *("on_skipped_callback", "on_success_callback"),
)


@dataclass(frozen=True, slots=True)
class Gates:
    """The four gates of a check to which users can attach downstream tasks."""

    stop_pass: HighAvailabilityGate
    stop_fail: HighAvailabilityGate
    retrigger_pass: HighAvailabilityRetrigger
    retrigger_fail: HighAvailabilityRetrigger


def make_gates(
    check: Any, given: Mapping[str, Any], conf: Any, on_pass: Mapping[str, Any], on_fail: Mapping[str, Any]
) -> Gates:
    """Create the gates of a check in the check's DAG and task group, and place the gates downstream of the check.

    :param check: the HighAvailabilityOperator.
    :param given: the arguments of the check. Some of these arguments apply to the gates too.
    :param conf: the conf that is merged into the conf of the next DAG run; None if the conf stays the same. If
        `on_pass` or `on_fail` contains ``conf``, the next DAG run gets the conf from there instead.
    :param on_pass: arguments of the TriggerDagRunOperator that starts the DAG again after PASS.
    :param on_fail: arguments of the TriggerDagRunOperator that starts the DAG again after FAIL.
    """
    # This imports the models of Airflow, which the DAG processor has imported already. So it is done late.
    from deferrable_ops.operators.high_availability.retrigger import HighAvailabilityRetrigger

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
        replaces = wanted.get("conf") is not None
        chosen_conf = {"conf": wanted["conf"] if replaces else conf, "replaces_conf": replaces}
        return HighAvailabilityRetrigger(
            **{**default, **wanted, **chosen_conf, **common(f"retrigger-{result.value}", result)},
            action=Action.RETRIGGER,
            reference_date=check.reference_date,
            backoff=check.backoff,
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
