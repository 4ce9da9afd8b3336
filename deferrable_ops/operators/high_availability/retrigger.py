"""A gate that starts a DAG run. This module imports Airflow's TriggerDagRunOperator, which imports Airflow's models.
So import this module inside the functions that need it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability.conf import check_conf, next_conf, read_conf
from deferrable_ops.high_availability.facts import RunFacts
from deferrable_ops.high_availability.retrigger_backoff import RetriggerBackoff
from deferrable_ops.operators.base import finish_event
from deferrable_ops.operators.high_availability.gate import HighAvailabilityGate

if TYPE_CHECKING:
    from airflow.sdk import Context

RUN_ID_XCOM = "trigger_run_id"


class HighAvailabilityRetrigger(HighAvailabilityGate, TriggerDagRunOperator):
    """A gate that starts a DAG run. This class accepts all arguments of Airflow's TriggerDagRunOperator.

    :param reference_date: the argument `reference_date` of the check's HighAvailabilityOperator.
    :param backoff: the pauses between the retriggers of a chain. The task's trigger waits until the pause is over.
    :param conf: the conf of the next DAG run, as a dict or as a string with a JSON object; templated. The next run also
        keeps the conf of this run.
    :param replaces_conf: if True, the next run does not keep the conf of this run.
    """

    next_method: ClassVar[str] = "retrigger"
    template_fields: Sequence[str] = TriggerDagRunOperator.template_fields

    def __init__(
        self,
        *,
        reference_date: str,
        backoff: RetriggerBackoff,
        conf: Any = None,
        replaces_conf: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(conf=conf, **kwargs)
        check_conf("conf", conf)
        self.backoff = backoff.as_json() or None
        # A template is checked after rendering.
        if not isinstance(self.wait_for_completion, str):
            self._refuse_deadlock(self.get_dag())
        self.reference_date = reference_date
        self.replaces_conf = replaces_conf

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
        self.run_facts = RunFacts.of(context).as_json()
        self._start_run(context, super().execute(context))

    def retrigger(self, context: Context, event: dict[str, Any]) -> None:
        """Start the DAG run, unless an earlier attempt has started it. The id of the new DAG run depends on the
        attempt of the check's task.

        :raises DagRunTriggerException: always, if no earlier attempt has started the DAG run. This exception makes
            Airflow start the DAG run.
        :raises AirflowSkipException: if the check ended with another result or action.
        """
        self._start_run(context, finish_event(event))

    def execute_complete(self, context: Context, event: Any) -> None:
        """Finish the task after the started DAG run has ended.

        Airflow calls this method only if ``wait_for_completion`` and ``deferrable`` are True.
        """
        TriggerDagRunOperator.execute_complete(self, context, event)

    def _refuse_deadlock(self, dag: Any) -> None:
        is_own = dag is not None and self.trigger_dag_id == dag.dag_id
        if is_own and self.wait_for_completion and dag.max_active_runs == 1:
            raise InputError(
                f"wait_for_completion=True of the task {self.task_id!r} would wait forever: the next run of the DAG "
                "starts only after this run has ended, because of max_active_runs=1; remove wait_for_completion, or "
                "increase max_active_runs"
            )

    def _start_run(self, context: Context, check: Mapping[str, Any]) -> None:
        self._refuse_deadlock(context["dag"])
        facts = RunFacts.of(context)
        # The trigger of an older release of the library has not set the time.
        ended_at = datetime.fromtimestamp(check.get("ended_at", time.time()), UTC)
        self.conf = next_conf(
            read_conf("conf", self.conf),
            facts,
            task_id=self.check_task_id,
            reference_date=self.reference_date,
            ended_at=ended_at,
            reset_after=RetriggerBackoff.from_json(self.backoff or {}).reset_after,
            others=_other_check_ids(context["dag"].task_dict, self.check_task_id),
            replaces=self.replaces_conf,
        )
        if not self.trigger_run_id:
            count = facts.retriggers(self.check_task_id) + 1
            self.trigger_run_id = f"retrigger_{count}__{check['attempt']}"
            if context["ti"].get_dr_count(self.trigger_dag_id, run_ids=[self.trigger_run_id]):
                self.log.info(
                    "No DAG run is started. The DAG run %s exists already, because an earlier attempt of this task "
                    "started it",
                    self.trigger_run_id,
                )
                context["ti"].xcom_push(key=RUN_ID_XCOM, value=self.trigger_run_id)
                return
        self.log.info("Starting the DAG run %s of the DAG %s", self.trigger_run_id or "", self.trigger_dag_id)
        start: Any = TriggerDagRunOperator.execute
        # Airflow wraps execute() and refuses calls from other methods, so call the original function.
        start.__wrapped__(self, context)


def _other_check_ids(tasks: Mapping[str, Any], own: str) -> list[str]:
    gates = [task for task in tasks.values() if isinstance(task, HighAvailabilityRetrigger)]
    return sorted({gate.check_task_id for gate in gates} - {own})
