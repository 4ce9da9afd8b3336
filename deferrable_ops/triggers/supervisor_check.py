"""Watching a supervisord's programs: a check that polls in the triggerer, together with all others of that daemon."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from deferrable_ops.exceptions import MachineRefused, SupervisordRefused
from deferrable_ops.high_availability.results import Action as CheckAction
from deferrable_ops.high_availability.results import CheckResult, Decision, Result
from deferrable_ops.high_availability.watch import Watch
from deferrable_ops.outcome import Failure, Outcome, Skip
from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.policy import Action
from deferrable_ops.triggers.high_availability import HighAvailabilityTrigger
from deferrable_ops.triggers.supervisor_configuration import (
    address_of,
    daemon_name,
    is_remote,
    open_configuration,
    where_of,
)
from deferrable_ops.triggers.supervisor_kept import kept_of
from deferrable_ops.triggers.supervisor_watching import Programs, read_processes
from deferrable_ops.upstreams.machine import Machine, use_machine
from deferrable_ops.upstreams.supervisord import use_supervisord

_RESULTS: Final[dict[Action | None, CheckResult]] = {
    None: (Result.PASS, CheckAction.CONTINUE),
    Action.SUCCESS: (Result.PASS, CheckAction.STOP),
    Action.FAIL: (Result.FAIL, CheckAction.STOP),
    Action.RETRIGGER: (Result.FAIL, CheckAction.RETRIGGER),
}


class SupervisorCheckTrigger(HighAvailabilityTrigger):
    """Watches the programs of a supervisord, until they, a limit or the timeout end that.

    :param configuration: what ``supervisor_configuration.seal_configuration`` made.
    :param rules: what :meth:`Rules.as_json` wrote; how often supervisord is asked is in the configuration.
    :param soft_fail: a timeout skips the task.
    :param run_facts: what :meth:`RunFacts.as_json` wrote, where a worker deferred the task; None where the scheduler
        did, because Airflow tells then.
    """

    feature: ClassVar[str] = "supervisor"
    classpath: ClassVar[str] = "deferrable_ops.triggers.supervisor_check.SupervisorCheckTrigger"
    arguments: ClassVar[tuple[str, ...]] = ("configuration", "rules", "soft_fail", "run_facts")

    def __init__(self, *, configuration: str = "", **base: Any) -> None:
        super().__init__(**base)
        self.configuration = configuration

    def validate(self) -> None:
        """Check the rendered configuration.

        :raises InputError: it is wrong.
        :raises ConfigurationError: it cannot be decrypted.
        """
        open_configuration(self.configuration)

    async def poll(self) -> Outcome:
        """Look again and again, and return how that ends."""
        judge = self.watch(self.facts(), self.current.progress)
        config = open_configuration(self.configuration)
        try:
            async with use_machine(where_of(config)) as machine:
                return await self._lives_elsewhere(config, machine) or await self._watched(
                    judge, config, machine
                )
        except (SupervisordRefused, MachineRefused) as refused:
            return Failure(str(refused), retryable=False)

    async def _watched(
        self, judge: Watch, config: SupervisorAirflowConfiguration, machine: Machine
    ) -> Outcome:
        interval = config.check_interval.total_seconds()
        async with use_supervisord(address_of(config, await machine.socket(config.socket_path))) as client:
            with client.watch(interval, read_processes) as readings:
                kept = await kept_of(self.inbox, self.current)
                programs = Programs(config, machine, client, readings, self.log, kept)
                until = f", until {judge.end} at the latest" if judge.end else ""
                self.log.info(
                    "Watching %d programs on %s every %g s%s",
                    len(config.programs),
                    machine.name,
                    interval,
                    until,
                )
                return await self._look_on(judge, programs)

    async def _look_on(self, judge: Watch, programs: Programs) -> Outcome:
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
                    outcome = judge.take(_RESULTS[action], _now())
            await (programs.forward_output() if outcome is None else programs.finish_output())
            # Kept before it is acted on: whoever goes on after a restart must know of a pause that was begun.
            now = judge.state | programs.kept.to_json()
            if now != kept:
                kept = now
                await self.inbox.waits.note_progress(self.current.id, now)
            if outcome is not None:
                self.log.info("%s", verdict.reason)
                return outcome if not isinstance(outcome, Decision) else self.end(outcome)
            await programs.act()
        await programs.finish_output()
        await self.inbox.waits.note_progress(self.current.id, judge.state | programs.kept.to_json())
        return self.end(ended)

    async def _lives_elsewhere(
        self, config: SupervisorAirflowConfiguration, machine: Machine
    ) -> Failure | None:
        if is_remote(config):
            return None
        name, here = daemon_name(config), await machine.identity()
        claimed = await self.inbox.daemons.of(name)
        if claimed is None or claimed.host == here.host:
            return None
        return Failure(
            f"the supervisord {name} lives on {claimed.host}, and this triggerer runs on {here.host}: pin the tasks of "
            "a local supervisord to one triggerer by a queue ([triggerer] queues_enabled), or use SupervisorSSH. "
            f"Where {claimed.host} is gone for good, run `deferrable-ops supervisord forget {name}`",
            retryable=False,
        )


def _now() -> datetime:
    return datetime.now(UTC)


def _seconds_until(end: datetime | None) -> float | None:
    return None if end is None else max(0.0, (end - _now()).total_seconds())
