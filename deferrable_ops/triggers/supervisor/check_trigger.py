"""The trigger that watches the programs of a supervisord. All tasks in one triggerer that watch the same supervisord
share one poll of it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from deferrable_ops.backoff import Backoff
from deferrable_ops.exceptions import MachineRefused, MachineUnavailable, SupervisordRefused
from deferrable_ops.high_availability.check_evaluator import CheckEvaluator
from deferrable_ops.high_availability.results import Action as CheckAction
from deferrable_ops.high_availability.results import CheckResult, Decision, Result
from deferrable_ops.inbox import Wait
from deferrable_ops.outages import REPORT_LASTS, outages
from deferrable_ops.outcome import Failure, Outcome, Skip
from deferrable_ops.supervisord.policy import Action
from deferrable_ops.throttle import Throttle
from deferrable_ops.triggers.dag_run import run_facts_of
from deferrable_ops.triggers.high_availability.triggers import HighAvailabilityTrigger
from deferrable_ops.triggers.supervisor.configuration import (
    is_remote,
    load_configuration,
    outage_source,
)
from deferrable_ops.triggers.supervisor.host import SupervisorHost, open_host
from deferrable_ops.triggers.supervisor.steps import wrong_host_reason
from deferrable_ops.triggers.supervisor.teardown import tear_down_if_killed
from deferrable_ops.triggers.supervisor.watch.liveness import start_liveness_checks
from deferrable_ops.triggers.supervisor.watch.notices import Notices
from deferrable_ops.triggers.supervisor.watch.process_xcoms import FAILURE, STATUS, ProcessXComs
from deferrable_ops.triggers.supervisor.watch.program_watcher import ProgramWatcher, parse_processes
from deferrable_ops.triggers.supervisor.watch.saved_state import SavedState, load_saved_state

_RESULTS: Final[dict[Action | None, CheckResult]] = {
    None: (Result.PASS, CheckAction.CONTINUE),
    Action.SUCCESS: (Result.PASS, CheckAction.STOP),
    Action.FAIL: (Result.FAIL, CheckAction.STOP),
    Action.RETRIGGER: (Result.FAIL, CheckAction.RETRIGGER),
}
_FAILURES: Final = (Action.FAIL, Action.RETRIGGER, Action.RETRY)

# Limits the memory that hundreds of watching tasks need when they start together. The process would never free this
# memory: a read that waits for one of the inbox's few connections keeps a greenlet with its stacks.
_inbox_calls = Throttle(8)


class SupervisorCheckTrigger(HighAvailabilityTrigger):
    """Watches the programs of a supervisord until all programs have ended, one of the task's limits is reached, or the
    task times out.

    :param configuration: the configuration of the supervisord as a string, from
        :func:`deferrable_ops.triggers.supervisor.configuration.serialize_configuration`.
    :param rules: the limits and thresholds of the task, from :meth:`CheckRules.as_json`. The poll interval in `rules`
        is ignored; the trigger uses the field ``check_interval`` of the configuration.
    :param soft_fail: whether the task is skipped when it times out. If `soft_fail` is False, the DAG triggers another
        run of itself when the task times out.
    :param run_facts: the data of the DAG run, from :meth:`RunFacts.as_json`, if a worker deferred the task. If the
        scheduler deferred the task, `run_facts` is None; then Airflow gives the trigger a task instance, and the
        trigger reads the data of the DAG run from this task instance.
    """

    feature: ClassVar[str] = "supervisor"
    classpath: ClassVar[str] = "deferrable_ops.triggers.supervisor.SupervisorCheckTrigger"
    arguments: ClassVar[tuple[str, ...]] = ("configuration", "rules", "soft_fail", "run_facts")

    def __init__(self, *, configuration: str = "", **base: Any) -> None:
        super().__init__(**base)
        self.configuration = configuration

    def validate(self) -> None:
        """Check the configuration.

        :raises InputError: if the configuration of the supervisord is invalid.
        :raises ConfigurationError: if the configuration of the supervisord cannot be decrypted.
        """
        load_configuration(self.configuration)
        # All tasks that watch one supervisord share one copy.
        self.configuration = sys.intern(self.configuration)

    @property
    def cancellable(self) -> bool:
        """Whether the trigger must stop supervisord when a user ends this task."""
        return load_configuration(self.configuration).stop_on_exit

    @property
    def sources(self) -> tuple[str, ...]:
        """The name of supervisord's machine, in a tuple. Outages of this machine are reported under this name."""
        return (outage_source(load_configuration(self.configuration)),)

    @property
    def xcoms_to_clear(self) -> tuple[str, ...]:
        """The keys of XComs that an earlier attempt of the task may have set. Airflow does not clear these XComs."""
        return (*super().xcoms_to_clear, STATUS, FAILURE)

    async def cancel(self, wait: Wait) -> None:
        """Stop supervisord and its programs, if a user ended the task and ``stop_on_exit`` is set."""
        await tear_down_if_killed(self.inbox, wait, load_configuration(self.configuration), self.log)

    async def on_wait_updated(self) -> None:
        """Free the memory of the saved state, because only :meth:`poll` reads this state."""
        self.current = replace(self.current, progress=None)

    async def poll(self) -> Outcome:
        """Watch the programs until the task can end, and return the task's outcome."""
        # Other tasks have started the programs, so a missing connection does not fail this task.
        self.started = True
        evaluator, backoff = await self.evaluator(run_facts_of(self), self.current.progress), Backoff()
        await self.on_wait_updated()
        while (ended := evaluator.at_limit(_now())) is None:
            began = time.monotonic()
            try:
                return await self._connect_and_watch(evaluator)
            except (MachineUnavailable, MachineRefused, SupervisordRefused) as lost:
                # The programs were started by other tasks. They keep running although they cannot be read now.
                if time.monotonic() - began > REPORT_LASTS:
                    backoff.succeeded()
                pause = backoff.failed()
                if backoff.failures == 1:
                    self.log.warning(
                        "Lost contact with the machine, and retrying; the programs keep running. The error: %s",
                        lost,
                    )
                outages.failed(self.sources[0], str(lost), lasts=REPORT_LASTS)
            await asyncio.sleep(pause)
        return self.end(ended)

    async def _connect_and_watch(self, evaluator: CheckEvaluator) -> Outcome:
        config = load_configuration(self.configuration)
        async with open_host(config, self.log) as host:
            if not is_remote(config):
                identity = await host.machine.identity()
                with _inbox_calls.slot() as granted:
                    await granted
                    reason = await wrong_host_reason(self.inbox, config, identity)
                if reason is not None:
                    return Failure(reason, retryable=False)
            interval = config.check_interval.total_seconds()
            with host.rpc.watch(interval, parse_processes) as readings:
                until = f", until {evaluator.end} at the latest" if evaluator.end else ""
                count, name = len(config.programs), host.machine.name
                self.log.info("Watching %d programs on %s every %g s%s", count, name, interval, until)
                with _inbox_calls.slot() as granted:
                    await granted
                    saved = await load_saved_state(self.inbox, await self.inbox.waits.get(self.current.id))
                notices = Notices(host, self.current.attempt) if config.on_program_event else None
                watcher = ProgramWatcher(host, readings, saved, self.current.attempt, notices)
                checks = start_liveness_checks(host, watcher)
                try:
                    outcome = await self._watch(evaluator, host, watcher)
                    if notices is not None:
                        await notices.finish()
                    return outcome
                finally:
                    for check in checks:
                        check.cancel()
                    if notices is not None:
                        notices.cancel()

    async def _watch(
        self, evaluator: CheckEvaluator, host: SupervisorHost, watcher: ProgramWatcher
    ) -> Outcome:
        saved, xcoms = None, ProcessXComs(self.push_xcom, self.log)
        while (ended := evaluator.at_limit(_now())) is None:
            verdict = await watcher.next_verdict(_seconds_until(evaluator.end))
            if verdict is None:
                continue
            outcome: Outcome | Decision | None
            match verdict.action:
                case Action.RETRY:
                    outcome = Failure(verdict.reason)
                case Action.SKIP:
                    outcome = Skip(verdict.reason)
                case action:
                    outcome = evaluator.evaluate(_RESULTS[action], _now())
            await (watcher.forward_output() if outcome is None else watcher.finish_output())
            # Save the state before applying the steps. A restarted trigger must know which pauses have begun.
            if (evaluator.state, watcher.state) != saved:
                saved = evaluator.state, watcher.state
                await self._save(*saved)
            watcher.send_notices()
            if outcome is None:
                xcoms.show(watcher.facts, watcher.programs)
            else:
                self.log.info("%s", verdict.reason)
                await xcoms.finish(watcher.facts, watcher.programs)
                if verdict.action in _FAILURES:
                    await xcoms.fail(host, watcher.programs)
                return outcome if not isinstance(outcome, Decision) else self.end(outcome)
            await watcher.apply_steps()
        await watcher.finish_output()
        await xcoms.finish(watcher.facts, watcher.programs)
        await self._save(evaluator.state, watcher.state)
        return self.end(ended)

    async def _save(self, health: dict[str, Any], state: SavedState) -> None:
        with _inbox_calls.slot() as granted:
            await granted
            await self.inbox.waits.save_progress(self.current.id, health | state.to_json())


def _now() -> datetime:
    return datetime.now(UTC)


def _seconds_until(end: datetime | None) -> float | None:
    return None if end is None else max(0.0, (end - _now()).total_seconds())
