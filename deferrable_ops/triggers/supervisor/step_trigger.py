"""The steps that prepare, start and stop a supervisord and its programs: each a task of its own."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, Final

from deferrable_ops.exceptions import (
    InputError,
    MachineRefused,
    MachineUnavailable,
    SupervisordRefused,
    SupervisordUnavailable,
)
from deferrable_ops.inbox import Wait
from deferrable_ops.inbox.waits.launches import Claim, ClaimLost
from deferrable_ops.outcome import Failure, Outcome, Success
from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.dag_run import run_facts_of
from deferrable_ops.triggers.supervisor.configuration import STEPS, load_configuration
from deferrable_ops.triggers.supervisor.host import StepFailed, open_host
from deferrable_ops.triggers.supervisor.steps import StepRunner
from deferrable_ops.triggers.supervisor.teardown import tear_down_if_killed
from deferrable_ops.upstreams.backoff import Backoff

_TRY_AGAIN: Final = (ClaimLost, MachineUnavailable, SupervisordUnavailable)
_LEAVES_SOMETHING: Final = frozenset(
    {"configure-supervisor", "start-supervisor", "start-programs", "restart-programs"}
)


class SupervisorStepTrigger(TaskTrigger):
    """Takes one step with a supervisord. Repeated at any moment, also while another does the same, it does no harm.

    :param step: one of ``supervisor_configuration.STEPS``.
    :param configuration: what ``supervisor_configuration.serialize_configuration`` made.
    :param check_task_id: the task that watches the programs: by its name a DAG run tells that it was retriggered.
    :param run_facts: what :meth:`RunFacts.as_json` wrote, where a worker deferred the task; None where the scheduler
        did, because Airflow tells then. Only ``start-programs`` needs it.
    """

    feature: ClassVar[str] = "supervisor"
    classpath: ClassVar[str] = "deferrable_ops.triggers.supervisor.SupervisorStepTrigger"
    arguments: ClassVar[tuple[str, ...]] = ("step", "configuration", "check_task_id", "run_facts")

    _problem: str | None = None  # why it is not done yet

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

    @property
    def cancellable(self) -> bool:
        """Whether a user who ends this task ends what it has started."""
        return self.step in _LEAVES_SOMETHING and self._cfg.stop_on_exit

    def validate(self) -> None:
        """Check the arguments.

        :raises InputError: one of them is wrong; the message names it and the fix.
        :raises ConfigurationError: the configuration was sealed with another key.
        """
        if self.step not in STEPS:
            raise InputError(f"step={self.step!r} is none; give one of {', '.join(STEPS)}")
        load_configuration(self.configuration)

    async def wait(self) -> Outcome:
        """Take the step, and return what it found and did."""
        return await self.race_with_settlement(self._until_taken())

    async def cancel(self, wait: Wait) -> None:
        """Stop what a task that a user ended has started, where ``stop_on_exit`` says so."""
        await tear_down_if_killed(self.inbox, wait, self._cfg, self.log)

    async def expired(self) -> Outcome:
        """Return why the step was not taken in time."""
        reason = self._problem or "it was still under way"
        return Failure(f"{self.step} did not end within {self.timeout:g} s: {reason}")

    async def _until_taken(self) -> Outcome:
        await self.stop_previous_attempts()
        backoff = Backoff()
        while True:
            try:
                async with self.inbox.launches.claim(self.current.id) as claim:
                    if claim is None:
                        return await self._outcome_of_another()
                    told = await self._take(claim)
                    await claim.record(told)
                    return Success(told)
            except StepFailed as failed:
                return Failure(str(failed), failed.retryable)
            except (MachineRefused, SupervisordRefused) as refused:
                return Failure(str(refused), retryable=False)
            except _TRY_AGAIN as error:
                self._problem = str(error)
            pause = backoff.failed()
            self.log.warning("%s; trying again in %.1f s", self._problem, pause)
            await asyncio.sleep(pause)

    async def _take(self, claim: Claim) -> dict[str, Any]:
        restart = self.step == "start-programs" and self._restarts()
        async with open_host(self._cfg, self.log, claim.check) as host:
            return await StepRunner(host, self.inbox, self.current, restart=restart).run(self.step)

    async def _outcome_of_another(self) -> Outcome:
        """Return what came of it where another triggerer has taken the step, or the wait is settled."""
        wait = await self.inbox.waits.get(self.current.id)
        return await self.wait_until_settled() if wait.launch_answer is None else Success(wait.launch_answer)

    def _restarts(self) -> bool:
        """Return whether programs that run already are to be started anew, in this DAG run."""
        cfg = self._cfg
        if cfg.restart_on_initial == cfg.restart_on_retrigger:
            return cfg.restart_on_initial
        is_retriggered = run_facts_of(self).retriggers(self.check_task_id) > 0
        return cfg.restart_on_retrigger if is_retriggered else cfg.restart_on_initial

    @property
    def _cfg(self) -> SupervisorAirflowConfiguration:
        return load_configuration(self.configuration)
