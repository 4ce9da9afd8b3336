"""The trigger of a step that does not run in every DAG run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import or_

from deferrable_ops.high_availability.check_evaluator import CheckEvaluator, CheckRules
from deferrable_ops.inbox.database.schema import IS_WAITING, waits
from deferrable_ops.outcome import Failure, Outcome, Skip, Success
from deferrable_ops.triggers.dag_run import newest_wait, run_facts_of, states_of_tasks
from deferrable_ops.triggers.high_availability.triggers import computed_rules
from deferrable_ops.triggers.supervisor.configuration import (
    START_STEPS,
    TEARDOWN_STEPS,
    daemon_name,
    load_configuration,
)
from deferrable_ops.triggers.supervisor.step_trigger import SupervisorStepTrigger


class SupervisorDueStepTrigger(SupervisorStepTrigger):
    """Runs a step as :class:`SupervisorStepTrigger` does, but only if the step must run in this DAG run.

    A step that starts programs does nothing if the ``runtime`` or the ``endtime`` of the watching task is over. A
    teardown step is skipped if supervisord must keep running after this DAG run. The step "force-kill" is skipped until
    a user clears the task of this step.

    :param rules: for a step that starts programs, the limits of the task that watches the programs, from
        :meth:`CheckRules.as_json`; None for all other steps.
    :param gate_task_id: the id of the task that decides whether this step runs; None if this step does not depend on
        such a task. For a teardown step, this is the task ``teardown``. For the step "force-kill", this is the task
        "force-kill-dag", which always skips itself.
    :param skip_because: the reason, as text for the task's log, why this step is skipped in every DAG run; None if this
        step can run.
    """

    classpath: ClassVar[str] = "deferrable_ops.triggers.supervisor.SupervisorDueStepTrigger"
    arguments: ClassVar[tuple[str, ...]] = (
        *SupervisorStepTrigger.arguments,
        "rules",
        "gate_task_id",
        "skip_because",
    )

    def __init__(
        self,
        *,
        rules: dict[str, Any] | None = None,
        gate_task_id: str | None = None,
        skip_because: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.rules = rules
        self.gate_task_id = gate_task_id
        self.skip_because = skip_because

    async def wait(self) -> Outcome:
        """Run the step and return its result. If the step must not run in this DAG run, return an outcome with the
        reason.
        """
        outcome = await self._outcome_if_not_due()
        return await super().wait() if outcome is None else outcome

    async def _outcome_if_not_due(self) -> Outcome | None:
        # The pause before a retrigger may end after the limit. Then the programs must not run again.
        if self.step in (*START_STEPS, "restart-programs"):
            return await self._success_if_time_is_over()
        if self.step in TEARDOWN_STEPS and self.gate_task_id is not None:
            return await self._skip_unless_torn_down(self.gate_task_id)
        if self.step == "force-kill" and self.gate_task_id is not None:
            return await self._skip_unless_cleared(self.gate_task_id)
        return None

    async def _success_if_time_is_over(self) -> Outcome | None:
        if self.rules is None:
            return None
        facts = run_facts_of(self)
        rules = await computed_rules(self.check_task_id, facts, CheckRules.from_json(self.rules))
        evaluator = CheckEvaluator(self.check_task_id, facts, rules)
        decision = evaluator.at_limit(datetime.now(UTC))
        if decision is None:
            return None
        self.log.info("Nothing to start: %s", decision.reason)
        # Do not return a Skip. Airflow would also skip the check, because it is downstream. But the check must run: it
        # ends the DAG run as a success.
        return Success({"done": False, "because": decision.reason})

    async def _skip_unless_torn_down(self, gate: str) -> Outcome | None:
        decided = await newest_wait(self, gate)
        match None if decided is None else decided.outcome:
            case Skip(reason):
                return Skip(reason)
            case Failure(reason):
                return Failure(
                    f"the task {gate} could not decide whether to stop supervisord: {reason}; clear the task {gate}"
                )
            case None:
                # A user set the state of the gate.
                if ((await states_of_tasks(self.current.attempt, [gate])) or {}).get(gate) != "success":
                    return Skip(f"the task {gate} did not decide to stop supervisord")
        if self.skip_because is not None:
            return Skip(self.skip_because)
        return await self._skip_if_taken_over(0.0 if decided is None else decided.created_at)

    async def _skip_if_taken_over(self, ended_at: float) -> Skip | None:
        """Return a Skip if another DAG run uses this supervisord now. For example, this happens after a user has
        cleared a task of an older DAG run.
        """
        own = self.current.attempt
        claimed = await self.inbox.daemons.find(daemon_name(load_configuration(self.configuration)))
        if claimed is None or claimed.dag_id != own.dag_id or claimed.run_id == own.run_id:
            return None
        using = await self.inbox.waits.find(
            waits.c.dag_id == claimed.dag_id,
            waits.c.run_id == claimed.run_id,
            waits.c.feature == self.feature,
            or_(IS_WAITING, waits.c.created_at > ended_at),
            limit=1,
        )
        return Skip(f"the DAG run {claimed.run_id} uses this supervisord now") if using else None

    async def _skip_unless_cleared(self, gate: str) -> Outcome | None:
        own = self.current.attempt
        earlier = await self.inbox.waits.find(
            waits.c.dag_id == own.dag_id,
            waits.c.run_id == own.run_id,
            waits.c.task_id == own.task_id,
            waits.c.map_index == own.map_index,
            waits.c.id != self.current.id,
        )
        decided = await newest_wait(self, gate)
        # If a user clears the whole DAG run, the gate also runs again. In that case, do not kill supervisord.
        last = max((wait.created_at for wait in earlier), default=None)
        if decided is None:
            # The gate's wait may have been deleted, because the inbox keeps settled waits only for some days.
            return None if own.try_number > 1 else Skip("no user has cleared this task")
        if last is None or decided.created_at >= last:
            return Skip(
                "no user has cleared this task; clear this task, and no other task, to kill supervisord"
            )
        self.log.warning("A user cleared this task; killing supervisord and its programs")
        return None
