"""Watching a supervisord's programs: a check that polls in the triggerer, together with all others of that daemon."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from deferrable_ops.exceptions import MachineRefused, MachineUnavailable, SupervisordRefused
from deferrable_ops.high_availability.check_evaluator import CheckEvaluator
from deferrable_ops.high_availability.results import Action as CheckAction
from deferrable_ops.high_availability.results import CheckResult, Decision, Result
from deferrable_ops.inbox import Wait
from deferrable_ops.outcome import Failure, Outcome, Skip
from deferrable_ops.supervisord.policy import Action
from deferrable_ops.triggers.dag_run import run_facts_of
from deferrable_ops.triggers.high_availability.triggers import HighAvailabilityTrigger
from deferrable_ops.triggers.supervisor.configuration import is_remote, load_configuration
from deferrable_ops.triggers.supervisor.host import open_host
from deferrable_ops.triggers.supervisor.steps import wrong_host_reason
from deferrable_ops.triggers.supervisor.teardown import tear_down_if_killed
from deferrable_ops.triggers.supervisor.watch.program_watcher import Programs, parse_processes
from deferrable_ops.triggers.supervisor.watch.saved_state import SavedState, load_saved_state
from deferrable_ops.upstreams.backoff import Backoff

_RESULTS: Final[dict[Action | None, CheckResult]] = {
    None: (Result.PASS, CheckAction.CONTINUE),
    Action.SUCCESS: (Result.PASS, CheckAction.STOP),
    Action.FAIL: (Result.FAIL, CheckAction.STOP),
    Action.RETRIGGER: (Result.FAIL, CheckAction.RETRIGGER),
}


class SupervisorCheckTrigger(HighAvailabilityTrigger):
    """Watches the programs of a supervisord, until they, a limit or the timeout end that.

    :param configuration: what ``supervisor_configuration.serialize_configuration`` made.
    :param rules: what :meth:`CheckRules.as_json` wrote; how often supervisord is asked is in the configuration.
    :param soft_fail: a timeout skips the task.
    :param run_facts: what :meth:`RunFacts.as_json` wrote, where a worker deferred the task; None where the scheduler
        did, because Airflow tells then.
    """

    feature: ClassVar[str] = "supervisor"
    classpath: ClassVar[str] = "deferrable_ops.triggers.supervisor.SupervisorCheckTrigger"
    arguments: ClassVar[tuple[str, ...]] = ("configuration", "rules", "soft_fail", "run_facts")

    def __init__(self, *, configuration: str = "", **base: Any) -> None:
        super().__init__(**base)
        self.configuration = configuration

    def validate(self) -> None:
        """Check the rendered configuration.

        :raises InputError: it is wrong.
        :raises ConfigurationError: it cannot be decrypted.
        """
        load_configuration(self.configuration)

    @property
    def cancellable(self) -> bool:
        """Whether a user who ends this task ends the programs."""
        return load_configuration(self.configuration).stop_on_exit

    async def cancel(self, wait: Wait) -> None:
        """Stop programs and supervisord where a user ended the task, and ``stop_on_exit`` says so."""
        await tear_down_if_killed(self.inbox, wait, load_configuration(self.configuration), self.log)

    async def poll(self) -> Outcome:
        """Look again and again, and return how that ends."""
        judge, backoff = self.evaluator(run_facts_of(self), self.current.progress), Backoff()
        while (ended := judge.at_limit(_now())) is None:
            try:
                return await self._watched(judge)
            except (SupervisordRefused, MachineRefused) as refused:
                return Failure(str(refused), retryable=False)
            except MachineUnavailable as lost:
                pause = backoff.failed()
                self.log.warning("The programs cannot be seen now, and go on: %s", lost)
            await asyncio.sleep(pause)
        return self.end(ended)

    async def _watched(self, judge: CheckEvaluator) -> Outcome:
        config = load_configuration(self.configuration)
        async with open_host(config, self.log) as host:
            if not is_remote(config):
                elsewhere = await wrong_host_reason(self.inbox, config, await host.machine.identity())
                if elsewhere is not None:
                    return Failure(elsewhere, retryable=False)
            interval = config.check_interval.total_seconds()
            with host.rpc.watch(interval, parse_processes) as readings:
                until = f", until {judge.end} at the latest" if judge.end else ""
                count, name = len(config.programs), host.machine.name
                self.log.info("Watching %d programs on %s every %g s%s", count, name, interval, until)
                kept = await load_saved_state(self.inbox, await self.inbox.waits.get(self.current.id))
                programs = Programs(host, readings, kept)
                return await self._look_on(judge, programs)

    async def _look_on(self, judge: CheckEvaluator, programs: Programs) -> Outcome:
        kept = None
        while (ended := judge.at_limit(_now())) is None:
            verdict = await programs.look(_seconds_until(judge.end))
            if verdict is None:
                continue
            outcome: Outcome | Decision | None
            match verdict.action:
                case Action.RETRY:
                    outcome = Failure(verdict.reason)
                case Action.SKIP:
                    outcome = Skip(verdict.reason)
                case action:
                    outcome = judge.evaluate(_RESULTS[action], _now())
            await (programs.forward_output() if outcome is None else programs.finish_output())
            # SavedState before it is acted on: whoever goes on after a restart must know of a pause that was begun.
            if (judge.state, programs.kept) != kept:
                kept = judge.state, programs.kept
                await self._keep(*kept)
            if outcome is not None:
                self.log.info("%s", verdict.reason)
                return outcome if not isinstance(outcome, Decision) else self.end(outcome)
            await programs.act()
        await programs.finish_output()
        await self._keep(judge.state, programs.kept)
        return self.end(ended)

    async def _keep(self, health: dict[str, Any], seen: SavedState) -> None:
        await self.inbox.waits.save_progress(self.current.id, health | seen.to_json())


def _now() -> datetime:
    return datetime.now(UTC)


def _seconds_until(end: datetime | None) -> float | None:
    return None if end is None else max(0.0, (end - _now()).total_seconds())
