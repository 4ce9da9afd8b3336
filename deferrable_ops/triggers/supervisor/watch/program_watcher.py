"""Watches the programs of one supervisord for one task. The class ProgramWatcher also pauses, resumes and restarts
these programs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final, NamedTuple

from deferrable_ops.exceptions import MachineUnavailable, SupervisordRefused, SupervisordUnavailable
from deferrable_ops.inbox import Attempt
from deferrable_ops.outages import REPORT_LASTS, outages
from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.crash_loops import CrashHistory, CrashLoopStep, begin_restart
from deferrable_ops.supervisord.evaluation import (
    Evaluation,
    evaluate,
    histories_for_retry,
    processes_to_restart,
)
from deferrable_ops.supervisord.policy import Action
from deferrable_ops.supervisord.processes import Process, ProcessState, Verdict
from deferrable_ops.triggers.supervisor.configuration import outage_source
from deferrable_ops.triggers.supervisor.daemon.drift import DriftReconciler
from deferrable_ops.triggers.supervisor.daemon.processes import find_daemons
from deferrable_ops.triggers.supervisor.host import Fault, StepFailed, SupervisorHost
from deferrable_ops.triggers.supervisor.watch.file_forwarding import FileForwarder
from deferrable_ops.triggers.supervisor.watch.log_forwarding import LogForwarder
from deferrable_ops.triggers.supervisor.watch.notices import Notices
from deferrable_ops.triggers.supervisor.watch.output_copier import OutputCopier
from deferrable_ops.triggers.supervisor.watch.program_events import (
    ProgramEvent,
    ProgramEventKind,
    find_events,
)
from deferrable_ops.triggers.supervisor.watch.saved_state import SavedState
from deferrable_ops.upstreams.supervisord.client import Processes
from deferrable_ops.upstreams.supervisord.poller import ProcessSubscription


class ProcessReading(NamedTuple):
    """The result of one poll of supervisord. All tasks that watch this supervisord share the parsed result.

    :param processes: all processes of supervisord.
    :param facts: the data of all processes in the poll result, without the time of the poll. If two poll results have
        equal `facts`, no process has changed between the two polls.
    :param starts: the start time of each process, by the process's full name.
    :param evaluations: the evaluations of `processes`, each with the configuration and the crash histories from which
        it was computed. All tasks with the same configuration and the same crash histories share an evaluation.
    """

    processes: tuple[Process, ...]
    facts: tuple[Any, ...]
    starts: dict[str, int]
    evaluations: list[tuple[SupervisorAirflowConfiguration, dict[str, CrashHistory], Evaluation]]

    def evaluation(
        self, config: SupervisorAirflowConfiguration, histories: dict[str, CrashHistory]
    ) -> Evaluation:
        """Return the evaluation of `processes`, see :func:`evaluate`."""
        for known_config, known, evaluation in self.evaluations:
            # Equal crash histories may differ in the end of a pause, except if there was no pause.
            is_equal = known == histories and (not known or evaluation.is_calm)
            if known_config is config and (known is histories or is_equal):
                return evaluation
        evaluation = evaluate(config, self.processes, histories)
        self.evaluations.append((config, histories, evaluation))
        return evaluation


_CONTINUE: Final = Verdict(None)

# The maximum number of evaluations that two poll results share.
_MAX_SHARED: Final = 16

# After this number of unanswered polls in a row, supervisord is considered dead if its process does not run.
_MAX_UNANSWERED: Final = 3

_METHODS: Final = {
    CrashLoopStep.PAUSE: "supervisor.stopProcess",
    CrashLoopStep.RESUME: "supervisor.startProcess",
}

# For each step, the fault that supervisord returns if the process is already in the wanted state.
_ALREADY_DONE: Final = {
    CrashLoopStep.PAUSE: Fault.NOT_RUNNING,
    CrashLoopStep.RESUME: Fault.ALREADY_STARTED,
}


def parse_processes(answer: Processes, previous: ProcessReading | None = None) -> ProcessReading:
    """Convert the response of supervisord to a poll into a ProcessReading.

    :param previous: the result of the previous poll. If no process has changed since then, both results share their
        data. Otherwise, each watching task would keep the data of the poll with which the task began.
    :raises InputError: if the response does not contain the data of processes.
    """
    processes = tuple(map(Process.from_info, answer))
    facts = tuple(
        (one.full_name, one.state, one.start, one.pid, one.exit_code, one.error) for one in processes
    )
    if previous is not None and facts == previous.facts:
        calm = [known for known in previous.evaluations if known[2].is_calm]
        return previous._replace(processes=processes, evaluations=calm[-_MAX_SHARED:])
    return ProcessReading(processes, facts, {one.full_name: one.start for one in processes}, [])


class ProgramWatcher:
    """Watches the programs of one supervisord for one task.

    :param readings: the poll results of this supervisord. All tasks in this triggerer that watch this supervisord share
        them.
    :param saved: the state that was saved in the inbox by an earlier attempt of the task, or by this attempt before a
        restart of the triggerer.
    :param attempt: the attempt of the task, which determines the names of files with output.
    :param notices: sends notices of the events of programs; None if the configuration has no notifier.
    """

    # A class attribute, because an instance attribute would need memory for each watching task.
    hangs_after: ClassVar[float] = 300.0
    """After this number of seconds without an answer, supervisord is considered dead although its process runs."""

    def __init__(
        self,
        host: SupervisorHost,
        readings: ProcessSubscription[ProcessReading],
        saved: SavedState,
        attempt: Attempt,
        notices: Notices | None = None,
    ) -> None:
        self._host = host
        self._config = host.cfg
        self._client = host.rpc
        self._log = host.log
        self._readings = readings
        self._histories = saved.histories
        self._is_retry = saved.is_retry
        # The processes that a retry asked supervisord to restart, by full name. True: supervisord accepted the restart.
        self._restarts: dict[str, bool] = {}
        self._last: Evaluation | None = None
        self._facts: tuple[Any, ...] | None = None
        self._notices = notices
        self._is_calm = False
        self._unanswered = 0
        self._answered_at = time.monotonic()
        self._is_lost = False
        self._saved_output = saved.output
        self._drift = DriftReconciler(host)
        self._output = _output_copier(host, saved, attempt)

    @property
    def state(self) -> SavedState:
        """The state of this object, which the caller must save in the inbox. The state changes only when the state or
        the output of a process changes.
        """
        output = self._saved_output if self._output is None else self._output.state
        return SavedState(self._histories, output, is_ours=True)

    @property
    def programs(self) -> dict[str, tuple[Process, ...]]:
        """The processes of each program at the last poll. If supervisord did not answer this poll, the state of the
        processes is UNKNOWN.
        """
        found = {} if self._last is None else self._last.processes
        if not self._unanswered:
            return found
        return {
            name: tuple(replace(process, state=ProcessState.UNKNOWN, pid=0) for process in own)
            for name, own in found.items()
        }

    @property
    def facts(self) -> Any:
        """A value that changes whenever the states of the processes change; None if these states are unknown."""
        return None if self._unanswered else self._facts

    def send_notices(self) -> None:
        """Send notices of the events that were found since the last call."""
        if self._notices is not None:
            self._notices.send()

    def is_paused(self, process: Process) -> bool:
        """Return whether a process is stopped for some time because of a crash loop, or is just being restarted."""
        history = self._histories.get(process.full_name)
        return history is not None and history.paused_until is not None

    def restart(self, processes: tuple[Process, ...]) -> None:
        """Restart running processes. The restart begins after the next poll. The caller saves :attr:`state` before the
        restart begins, so another triggerer completes the restart if this triggerer is killed.
        """
        self._histories = dict(self._histories)
        for process in processes:
            name = process.full_name
            self._histories[name] = begin_restart(self._histories.get(name, CrashHistory()), process)
        self._is_calm = False

    def note_not_ready(self, reasons: Mapping[str, str]) -> None:
        """Send a notice for each program that is not ready, or not healthy.

        :param reasons: a dict with the name of each of these programs, and the reason why the program is not ready or
            not healthy.
        """
        if self._notices is not None:
            self._notices.add(
                ProgramEvent(ProgramEventKind.NOT_READY, name, process, reason)
                for name, reason in reasons.items()
                for process in self.programs.get(name, ())
            )

    async def next_verdict(self, timeout: float | None) -> Verdict | None:
        """Wait for the next poll result, and return the verdict, which is what the task must do; None if this poll gave
        no verdict.

        :param timeout: maximum number of seconds to wait for the poll result; None means no limit.
        :raises SupervisordRefused: if supervisord refused the call, and would also refuse a retry.
        :raises MachineRefused: if the machine refused the connection, and would also refuse a retry.
        """
        try:
            async with asyncio.timeout(timeout):
                reading = await self._readings.next()
        except TimeoutError:
            return None
        except SupervisordUnavailable as error:
            return await self._verdict_without_answer(error)
        except SupervisordRefused as refused:
            if refused.code != Fault.SHUTDOWN_STATE:
                raise
            return await self._verdict_without_answer(refused)
        if self._is_lost:
            outages.recovered(outage_source(self._config))
        self._unanswered, self._is_lost = 0, False
        self._answered_at = time.monotonic()
        if self._is_calm and not self._drift.is_due and reading.facts == self._facts:
            return _CONTINUE
        drift = await self._drift.reconcile(reading.processes, reading.starts, self._histories)
        if drift.verdict is not None or not drift.is_current:
            return drift.verdict
        if drift.next is not None:
            self._replace(drift.next)
        if self._is_retry and await self._restart_retried(reading.processes):
            return None
        verdict = self._evaluate(reading)
        self.note_not_ready(drift.failed)
        return verdict

    async def apply_steps(self) -> None:
        """Pause and resume the processes as the newest evaluation requires. If a call to supervisord fails, the call is
        repeated after the next poll.
        """
        steps = self._last.steps if self._last else {}
        if not steps:
            return
        calls = [(_METHODS[step], (name, False)) for name, step in steps.items()]
        try:
            if await self._replace_processes(steps):
                return
            answers = await self._client.multicall(calls)
        except SupervisordUnavailable:
            return
        for (name, step), answer in zip(steps.items(), answers, strict=True):
            if isinstance(answer, SupervisordRefused) and answer.code != _ALREADY_DONE[step]:
                self._log.warning(
                    "Could not stop %s for a pause, or start it after a pause: %s", name, answer
                )

    async def forward_output(self) -> None:
        """Copy new output of the programs to the task's log, or to files."""
        if self._output is not None and self._last is not None:
            await self._output.forward(self._last.processes)

    async def finish_output(self) -> None:
        """Copy the remaining output of the programs that have ended to the task's log, or to files."""
        if self._output is not None and self._last is not None:
            await self._output.finish(self._last.processes)

    def _replace(self, processes: tuple[Process, ...]) -> None:
        """Begin to replace processes whose configuration has changed. The caller has waited until all processes that
        were replaced before are running again.
        """
        before = {name: replace(old, is_replaced=False) for name, old in self._histories.items()}
        self._histories = before
        self.restart(processes)
        for process in processes:
            name = process.full_name
            self._histories[name] = replace(self._histories[name], is_replaced=True)

    async def _replace_processes(self, steps: Mapping[str, CrashLoopStep]) -> bool:
        """Stop the processes that a rolling update replaces, and start these processes with their new configuration.
        Return False if there were no such processes.
        """
        due = [
            process
            for name, process in (_by_name(self._last) if self._last else {}).items()
            if steps.get(name) is CrashLoopStep.PAUSE
            and self._histories[name].is_restarting
            and self._histories[name].is_replaced
        ]
        if not due:
            return False
        try:
            refused = await self._drift.replace(due)
        except SupervisordUnavailable as error:
            self._log.warning(
                "Could not restart %s with its new configuration; trying again. The error was: %s",
                due[0].full_name,
                error,
            )
            return True
        for name, refusal in (refused or {}).items():
            self._log.error("%s could not be started with its new configuration: %s", name, refusal)
        # These processes do not restart, or another task has restarted them.
        for name in [process.full_name for process in due] if refused is None else refused:
            self._histories = self._histories | {name: replace(self._histories[name], paused_until=None)}
        return True

    async def _restart_retried(self, processes: tuple[Process, ...]) -> list[Process]:
        """Restart the processes that ended with the action RETRY. Airflow retries this task because of these processes.

        Return the processes that, according to the poll result, are not restarted yet. Until all of these processes are
        restarted, the caller must not evaluate poll results. If the triggerer is killed during the restarts, another
        triggerer does not restart a process a second time. The other triggerer sees that the start time of the process
        differs from the start time in the saved state.
        """
        due = processes_to_restart(self._config, processes, self._histories)
        due = [process for process in due if self._restarts.get(process.full_name, True)]
        if not due:
            self._histories = histories_for_retry(self._config, processes, self._histories)
            self._is_retry = False
        # Start times are whole seconds. If a process was started in this second, wait for the next second: a restart in
        # the same second would not change the start time.
        elif not any(process.now == process.start for process in due):
            await self._start([process for process in due if process.full_name not in self._restarts])
        return due

    async def _start(self, processes: list[Process]) -> None:
        if not processes:
            return
        try:
            answers = await self._client.multicall(
                [(_METHODS[CrashLoopStep.RESUME], (process.full_name, False)) for process in processes]
            )
        except SupervisordUnavailable:
            return
        for process, answer in zip(processes, answers, strict=True):
            name = process.full_name
            if isinstance(answer, SupervisordRefused) and answer.code != Fault.ALREADY_STARTED:
                self._log.warning("%s %s and could not be restarted: %s", name, process.end, answer)
                if answer.code != Fault.SHUTDOWN_STATE:
                    self._restarts[name] = False
            else:
                self._log.info("%s %s; restarted the process", name, process.end)
                self._restarts[name] = True

    def _evaluate(self, reading: ProcessReading) -> Verdict:
        before, self._last = self._last, reading.evaluation(self._config, self._histories)
        self._log_changes(before, self._last)
        if self._notices is not None:
            states = {} if before is None else {name: one.state for name, one in _by_name(before).items()}
            self._notices.add(find_events(self._config, self._histories, states, self._last))
        self._facts, self._histories = reading.facts, self._last.histories
        self._is_calm = self._last.is_calm
        return self._last.verdict

    def _log_changes(self, before: Evaluation | None, now: Evaluation) -> None:
        known = {} if before is None else _by_name(before)
        for name, process in _by_name(now).items():
            old = known.get(name)
            if old is None or (old.state, old.pid, old.start) != (process.state, process.pid, process.start):
                what = f"is {process.state.name}" if process.is_alive else process.end
                self._log.info("%s %s%s", name, what, f" (pid {process.pid})" if process.pid else "")
        for name, step in now.steps.items():
            if before is not None and before.steps.get(name) is step:
                continue
            history = now.histories[name]
            if history.is_restarting and history.is_replaced:
                self._log.info("Replacing %s, because its configuration has changed", name)
            elif history.is_restarting:
                what = "Stopping" if step is CrashLoopStep.PAUSE else "Starting"
                self._log.info("%s %s, because it was not healthy", what, name)
            elif step is CrashLoopStep.PAUSE:
                self._log.warning(
                    "%s is in a crash loop; keeping the process stopped for %d s, then starting it (pause number %d)",
                    name,
                    (history.paused_until or 0) - _by_name(now)[name].now,
                    history.pauses,
                )
            else:
                self._log.info("The pause of %s is over; starting the process", name)

    async def _verdict_without_answer(self, error: Exception) -> Verdict | None:
        unanswered = self._unanswered + 1
        try:
            missing = await self._host.missing_directories()
            if missing:
                self._unanswered = unanswered
                # Do not call supervisord again: another user may create the missing directory, with a socket, at any
                # time.
                return Verdict(Action.RETRIGGER, f"{error}, and {missing[0]} does not exist any more")
            is_slow = unanswered >= _MAX_UNANSWERED and await self._is_running()
        except MachineUnavailable as lost:
            self._lose_contact(
                "Lost contact with the machine, and retrying; the programs keep running. The error: %s", lost
            )
            return None
        self._unanswered = unanswered
        if is_slow:
            self._lose_contact("%s, although its process runs; the programs keep running", error)
        elif unanswered >= _MAX_UNANSWERED:
            return Verdict(Action.RETRIGGER, f"{error}, {unanswered} times in a row")
        else:
            self._log.warning("%s", error)
        return None

    async def _is_running(self) -> bool:
        """Return whether the process of supervisord runs, and may still answer."""
        if time.monotonic() - self._answered_at > self.hangs_after:
            return False
        if not await self._host.has_socket():
            return False
        try:
            return bool(await find_daemons(self._host))
        except StepFailed:
            # The machine has no tool to search for processes.
            return False

    def _lose_contact(self, message: str, error: Exception) -> None:
        outages.failed(outage_source(self._config), str(error), lasts=REPORT_LASTS)
        if not self._is_lost:
            self._is_lost = True
            self._log.warning(message, error)


def _output_copier(host: SupervisorHost, saved: SavedState, attempt: Attempt) -> OutputCopier[Any] | None:
    match host.cfg.forward_logs:
        case "file":
            return FileForwarder(host, saved, attempt)
        case True:
            return LogForwarder(host, saved)
    return None


def _by_name(evaluation: Evaluation) -> dict[str, Process]:
    return {process.full_name: process for own in evaluation.processes.values() for process in own}
