"""A step with a supervisord, taken only where its DAG run has come to it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from sqlalchemy import or_

from deferrable_ops.high_availability.check_evaluator import CheckEvaluator, CheckRules
from deferrable_ops.inbox.database.schema import IS_WAITING, waits
from deferrable_ops.outcome import Failure, Outcome, Skip, Success
from deferrable_ops.triggers.dag_run import newest_wait, run_facts_of, states_of_tasks
from deferrable_ops.triggers.supervisor.configuration import daemon_name, load_configuration
from deferrable_ops.triggers.supervisor.step_trigger import SupervisorStepTrigger

_STARTS: Final = frozenset({"configure-supervisor", "start-supervisor", "start-programs"})
_STOPS: Final = frozenset({"stop-programs", "stop-supervisor", "unconfigure-supervisor"})


class SupervisorDueStepTrigger(SupervisorStepTrigger):
    """Takes one step, as :class:`SupervisorStepTrigger`, unless the DAG run has no need of it.

    What starts does nothing in a run whose time is over; what stops is skipped in a run that has not ended; and a
    force-kill is skipped until a user clears it.

    :param rules: of the check; by its limits the run's time is over. For steps that start.
    :param gate_task_id: the task that decides whether the run ends, for steps that stop; the one that is skipped
        before it, for a force-kill.
    :param skip_because: why the step is always skipped; None: it is not.
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
        """Take the step where it is due, and return what it found and did."""
        instead = await self._instead()
        return await super().wait() if instead is None else instead

    async def _instead(self) -> Outcome | None:
        if self.step in _STARTS:
            return self._after_the_end()
        if self.step in _STOPS and self.gate_task_id is not None:
            return await self._before_the_end(self.gate_task_id)
        if self.step == "force-kill" and self.gate_task_id is not None:
            return await self._not_asked_for(self.gate_task_id)
        return None

    def _after_the_end(self) -> Outcome | None:
        if self.rules is None:
            return None
        evaluator = CheckEvaluator(self.check_task_id, run_facts_of(self), CheckRules.from_json(self.rules))
        decision = evaluator.at_limit(datetime.now(UTC))
        if decision is None:
            return None
        self.log.info("Nothing is started: %s", decision.reason)
        # No skip: what is chained behind would be skipped too, and the check, which ends the run as a success.
        return Success({"done": False, "because": decision.reason})

    async def _before_the_end(self, gate: str) -> Outcome | None:
        decided = await newest_wait(self, gate)
        match None if decided is None else decided.outcome:
            case Skip(reason):
                return Skip(reason)
            case Failure(reason):
                return Failure(f"{gate} could not decide whether the run ends: {reason}; clear it")
            case None:  # a user gave it its state
                if ((await states_of_tasks(self.current.attempt, [gate])) or {}).get(gate) != "success":
                    return Skip(f"{gate} did not decide that the run ends")
        if self.skip_because is not None:
            return Skip(self.skip_because)
        return await self._taken_over_since(0.0 if decided is None else decided.created_at)

    async def _taken_over_since(self, ended_at: float) -> Skip | None:
        """Return that another run of the DAG uses supervisord by now, where a user cleared an earlier one's task."""
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
        return Skip(f"the run {claimed.run_id} uses this supervisord now") if using else None

    async def _not_asked_for(self, gate: str) -> Outcome | None:
        own = self.current.attempt
        earlier = await self.inbox.waits.find(
            waits.c.dag_id == own.dag_id,
            waits.c.run_id == own.run_id,
            waits.c.task_id == own.task_id,
            waits.c.map_index == own.map_index,
            waits.c.id != self.current.id,
        )
        decided = await newest_wait(self, gate)
        # Whoever clears the whole run clears what is before this as well, which is not to kill anything.
        last = max((wait.created_at for wait in earlier), default=None)
        if decided is None:  # the inbox keeps it for some days only
            return None if own.try_number > 1 else Skip("nobody asked for it")
        if last is None or decided.created_at >= last:
            return Skip("nobody asked for it; clear this task, and only this, to kill supervisord")
        self.log.warning("A user cleared this task: supervisord and its programs are killed")
        return None
