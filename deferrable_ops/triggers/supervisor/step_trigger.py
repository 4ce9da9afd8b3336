"""The trigger that runs one step of a Supervisor, for example the step that starts supervisord."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, ClassVar, Final

from deferrable_ops.backoff import FIRST_PAUSE, Backoff
from deferrable_ops.exceptions import (
    InputError,
    LoginRefused,
    MachineRefused,
    MachineUnavailable,
    SupervisordRefused,
    SupervisordUnavailable,
)
from deferrable_ops.inbox import Attempt, NewWait, Wait
from deferrable_ops.inbox.waits.launches import Claim
from deferrable_ops.outages import REPORT_LASTS, outages
from deferrable_ops.outcome import Failure, Outcome, Success
from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.processes import processes_by_program
from deferrable_ops.triggers.base import DEFAULT_TIMEOUT, TaskTrigger
from deferrable_ops.triggers.dag_run import run_facts_of
from deferrable_ops.triggers.lifecycle.launching import LOST
from deferrable_ops.triggers.supervisor.configuration import (
    STEPS,
    TEARDOWN_STEPS,
    daemon_name,
    load_configuration,
    outage_source,
)
from deferrable_ops.triggers.supervisor.daemon.readiness import NotReady
from deferrable_ops.triggers.supervisor.host import StepFailed, SupervisorHost, open_host
from deferrable_ops.triggers.supervisor.steps import StepRunner
from deferrable_ops.triggers.supervisor.teardown import tear_down_if_killed
from deferrable_ops.triggers.supervisor.watch.notices import Notices
from deferrable_ops.triggers.supervisor.watch.process_xcoms import FAILURE, ProcessXComs
from deferrable_ops.triggers.supervisor.watch.program_events import find_start_failures

_TRANSIENT: Final = (MachineUnavailable, SupervisordUnavailable)
_CANCELLABLE_STEPS: Final = frozenset(
    {"configure-supervisor", "start-supervisor", "start-programs", "restart-programs"}
)


_PROGRAM_STEPS: Final = frozenset({"start-programs", "restart-programs"})


class SupervisorStepTrigger(TaskTrigger):
    """Runs one step of a Supervisor. An interrupted step can be run again, and two triggerers can run the same step at
    the same time.

    The timeout of a step counts only the time in which a triggerer runs the step.

    :param step: the name of the step, one of :data:`deferrable_ops.triggers.supervisor.configuration.STEPS`.
    :param configuration: the configuration of the supervisord as a string, from
        :func:`deferrable_ops.triggers.supervisor.configuration.serialize_configuration`.
    :param check_task_id: the id of the task that watches the programs. With this id, the trigger reads from the DAG run
        how many times that task has triggered the DAG again.
    :param run_facts: the data of the DAG run, from :meth:`RunFacts.as_json`, if a worker deferred the task. If the
        scheduler deferred the task, `run_facts` is None; then Airflow gives the trigger a task instance, and the
        trigger reads the data of the DAG run from this task instance.
    :param airflow_timeout: the timeout in seconds after which Airflow itself ends the deferral; then the operator
        defers the task again.
    :param tears_down: whether the library's own teardown steps, and not tasks of the user, stop the supervisord. If
        True, a triggerer also stops a supervisord that still runs after the end of the DAG run.
    :cvar first_pause: the longest time in seconds before the first retry of a step that failed for a transient reason.
    """

    feature: ClassVar[str] = "supervisor"
    classpath: ClassVar[str] = "deferrable_ops.triggers.supervisor.SupervisorStepTrigger"
    arguments: ClassVar[tuple[str, ...]] = (
        "step",
        "configuration",
        "check_task_id",
        "run_facts",
        "airflow_timeout",
        "tears_down",
    )

    first_pause: ClassVar[float] = FIRST_PAUSE

    # The last transient error.
    _problem: str | None = None

    def __init__(
        self,
        *,
        step: str = "",
        configuration: str = "",
        check_task_id: str = "",
        run_facts: dict[str, Any] | None = None,
        airflow_timeout: float = DEFAULT_TIMEOUT,
        tears_down: bool = True,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.step = step
        self.configuration = configuration
        self.check_task_id = check_task_id
        self.run_facts = run_facts
        self.airflow_timeout = airflow_timeout
        self.tears_down = tears_down

    @property
    def cancellable(self) -> bool:
        """Whether the trigger must stop supervisord when a user ends this task."""
        return self.step in _CANCELLABLE_STEPS and self._cfg.stop_on_exit

    def validate(self) -> None:
        """Check the arguments.

        :raises InputError: if an argument is invalid. The error message shows which argument is invalid and how to
            correct it.
        :raises ConfigurationError: if the configuration of the supervisord was encrypted with another ``fernet_key``.
        """
        if self.step not in STEPS:
            raise InputError(f"step={self.step!r} is not a step; give one of {', '.join(STEPS)}")
        load_configuration(self.configuration)

    def new_wait(self, attempt: Attempt) -> NewWait:
        """Return the data of the wait, which is the inbox row of this attempt. The deadline in this row pauses while no
        triggerer runs the step.
        """
        new = super().new_wait(attempt)
        return replace(new, timeout=self.timeout, latest_deadline=None, deadline_pauses=True)

    @property
    def xcoms_to_clear(self) -> tuple[str, ...]:
        """The keys of XComs that an earlier attempt of the task may have set. Airflow does not clear these XComs."""
        return (*super().xcoms_to_clear, *([FAILURE] if self.step in _PROGRAM_STEPS else []))

    async def wait(self) -> Outcome:
        """Run the step, and return its result as the task's outcome."""
        return await self.race_with_settlement(self._run_step())

    @property
    def sources(self) -> tuple[str, ...]:
        """The name of supervisord's machine, in a tuple. Outages of this machine are reported under this name."""
        return (outage_source(self._cfg),)

    async def cancel(self, wait: Wait) -> None:
        """Stop supervisord and its programs, if a user ended the task and ``stop_on_exit`` is set."""
        await tear_down_if_killed(self.inbox, wait, self._cfg, self.log)

    async def expired(self) -> Outcome:
        """Return a Failure with the reason why the step did not end before its timeout."""
        reason = self._problem or "the step was still running"
        return Failure(f"{self.step} did not end within {self.timeout:g} s: {reason}")

    async def _run_step(self) -> Outcome:
        await self.stop_previous_attempts()
        await self._restore_lost_progress()
        # If an earlier step has reached the machine, a refused login or a missing connection is temporary.
        reached = await self.inbox.daemons.find(daemon_name(self._cfg))
        self.started = self.started or reached is not None
        backoff = Backoff(first_pause=self.first_pause)
        # If a teardown step fails for good, supervisord keeps running. Its retry may reach the machine.
        is_teardown = self.step in TEARDOWN_STEPS
        while True:
            try:
                result = await self.launch_once(self._run_claimed)
                return await self.wait_until_settled() if result is None else Success(result)
            except StepFailed as failed:
                return Failure(str(failed), failed.retryable or is_teardown)
            except (MachineRefused, SupervisordRefused) as refused:
                if not (self.started and _is_login(refused)):
                    return Failure(str(refused), retryable=is_teardown)
                self._problem = str(refused)
            except _TRANSIENT as error:
                self._problem = str(error)
            pause = backoff.failed()
            if backoff.failures == 1:
                self.log.warning("%s; retrying in %.1f s", self._problem, pause)
            outages.failed(self.sources[0], self._problem, lasts=REPORT_LASTS)
            await asyncio.sleep(pause)

    async def _run_claimed(self, claim: Claim) -> dict[str, Any]:
        restart = self.step == "start-programs" and self._must_restart()
        async with open_host(self._cfg, self.log, claim.check) as host:
            runner = StepRunner(
                host,
                self.inbox,
                self.current,
                restart=restart,
                record_launch=self.record_launch,
                tears_down=self.tears_down,
            )
            try:
                return await runner.run(self.step)
            except StepFailed as failed:
                if self.step in _PROGRAM_STEPS:
                    await self._report_failure(host, failed)
                raise

    async def _report_failure(self, host: SupervisorHost, failed: StepFailed) -> None:
        try:
            found = processes_by_program(self._cfg, await host.processes())
        except (*_TRANSIENT, MachineRefused, SupervisordRefused) as error:
            self.log.warning("Could not read the states of the programs: %s", error)
            return
        await ProcessXComs(self.push_xcom, self.log).fail(host, found)
        if self._cfg.on_program_event:
            notices = Notices(host, self.current.attempt)
            notices.add(find_start_failures(found, failed.reasons if isinstance(failed, NotReady) else {}))
            try:
                await notices.finish()
            finally:
                notices.cancel()

    async def _restore_lost_progress(self) -> None:
        """If the inbox has lost the progress of a step that starts programs, restore this progress from Airflow.

        The step then continues as after a restart of the triggerer, and starts no program a second time.
        """
        record = await self.lost_launch() if self.step in _PROGRAM_STEPS else None
        if record is not None:
            self.log.error("The %s; this step continues, and does not start a program a second time", LOST)
            await self.inbox.waits.save_progress(self.current.id, record["details"])

    def _must_restart(self) -> bool:
        """Return whether this DAG run restarts programs that are already running."""
        cfg = self._cfg
        if cfg.restart_on_initial == cfg.restart_on_retrigger:
            return cfg.restart_on_initial
        is_retriggered = run_facts_of(self).retriggers(self.check_task_id) > 0
        return cfg.restart_on_retrigger if is_retriggered else cfg.restart_on_initial

    @property
    def _deferred_at(self) -> float | None:
        timeout_after = getattr(self, "timeout_after", None)
        return None if timeout_after is None else float(timeout_after.timestamp() - self.airflow_timeout)

    @property
    def _cfg(self) -> SupervisorAirflowConfiguration:
        return load_configuration(self.configuration)


def _is_login(refused: MachineRefused | SupervisordRefused) -> bool:
    return isinstance(refused, LoginRefused) or (isinstance(refused, SupervisordRefused) and not refused.code)
