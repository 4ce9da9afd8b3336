"""What a task sees of a supervisord's programs, look by look, and what it does about it."""

from __future__ import annotations

import asyncio
from typing import Any, Final, NamedTuple

from deferrable_ops.exceptions import MachineUnavailable, SupervisordRefused, SupervisordUnavailable
from deferrable_ops.supervisord.crash_loops import CrashLoopStep
from deferrable_ops.supervisord.evaluation import (
    Evaluation,
    evaluate,
    histories_for_retry,
    processes_to_restart,
)
from deferrable_ops.supervisord.policy import Action
from deferrable_ops.supervisord.processes import Process, Verdict
from deferrable_ops.triggers.supervisor.daemon.drift import DriftReconciler
from deferrable_ops.triggers.supervisor.host import SupervisorHost
from deferrable_ops.triggers.supervisor.watch.log_forwarding import LogForwarder
from deferrable_ops.triggers.supervisor.watch.saved_state import SavedState
from deferrable_ops.upstreams.supervisord.client import Processes
from deferrable_ops.upstreams.supervisord.poller import ProcessSubscription


class Seen(NamedTuple):
    """One reading, made once for all who watch.

    :param processes: all that supervisord has.
    :param facts: what tells that nothing has happened since another reading: all of them but the time.
    """

    processes: tuple[Process, ...]
    facts: tuple[Any, ...]


_GOES_ON: Final = Verdict(None)
_SILENT_LOOKS: Final = 3
_SHUTTING_DOWN: Final = 6  # the faults of supervisor's xmlrpc.py
_ALREADY_STARTED: Final = 60
_NOT_RUNNING: Final = 70
_CALLS: Final = {
    CrashLoopStep.PAUSE: "supervisor.stopProcess",
    CrashLoopStep.RESUME: "supervisor.startProcess",
}
_DONE_ALREADY: Final = {CrashLoopStep.PAUSE: _NOT_RUNNING, CrashLoopStep.RESUME: _ALREADY_STARTED}


def parse_processes(answer: Processes) -> Seen:
    """Return what a reading describes.

    :raises InputError: it describes no processes.
    """
    processes = tuple(map(Process.from_info, answer))
    return Seen(
        processes,
        tuple((one.full_name, one.state, one.start, one.pid, one.exit_code, one.error) for one in processes),
    )


class Programs:
    """The programs of one supervisord, as one task watches them.

    :param readings: what supervisord says, read for all who watch it.
    :param kept: what was known before.
    """

    def __init__(self, host: SupervisorHost, readings: ProcessSubscription[Seen], kept: SavedState) -> None:
        self._config = host.cfg
        self._missing_directories = host.missing_directories
        self._client = host.rpc
        self._log = host.log
        self._readings = readings
        self._histories = kept.histories
        self._is_retry = kept.is_retry
        self._asked: dict[str, bool] = {}  # what a retry starts again, and whether supervisord does that
        self._last: Evaluation | None = None
        self._seen: Seen | None = None
        self._is_calm = False
        self._silent = 0
        self._is_lost = False
        self._kept_output = kept.output
        self._drift = DriftReconciler(host)
        self._output = LogForwarder(host, kept) if host.cfg.forward_logs else None

    @property
    def kept(self) -> SavedState:
        """What to keep. It changes only when something does."""
        output = self._kept_output if self._output is None else self._output.state
        return SavedState(self._histories, output, is_ours=True)

    async def look(self, within: float | None) -> Verdict | None:
        """Wait for the next reading, and return what it means; None where it means nothing yet.

        :param within: seconds to wait for it.
        :raises SupervisordRefused: it says no, and will again.
        :raises MachineRefused: the machine does.
        """
        try:
            async with asyncio.timeout(within):
                seen = await self._readings.next()
        except TimeoutError:
            return None
        except SupervisordUnavailable as error:
            return await self._without_answer(error)
        except SupervisordRefused as refused:
            if refused.code != _SHUTTING_DOWN:
                raise
            return await self._without_answer(refused)
        self._silent, self._is_lost = 0, False
        if self._is_calm and not self._drift.is_due and self._seen and seen.facts == self._seen.facts:
            return _GOES_ON
        drift = await self._drift.reconcile(seen.processes)
        if drift.verdict is not None or not drift.is_current:
            return drift.verdict
        if self._is_retry and not await self._is_begun_again(seen.processes):
            return None
        return self._judged(seen)

    async def act(self) -> None:
        """Stop and start what the last look asked for. What does not work is asked for again by the next one."""
        steps = self._last.steps if self._last else {}
        if not steps:
            return
        calls = [(_CALLS[step], (name, False)) for name, step in steps.items()]
        try:
            answers = await self._client.multicall(calls)
        except SupervisordUnavailable:
            return
        for (name, step), answer in zip(steps.items(), answers, strict=True):
            if isinstance(answer, SupervisordRefused) and answer.code != _DONE_ALREADY[step]:
                self._log.warning("%s: %s", name, answer)

    async def forward_output(self) -> None:
        """Copy the programs' output to the task's log."""
        if self._output is not None and self._last is not None:
            await self._output.forward(self._last.processes)

    async def finish_output(self) -> None:
        """Copy what the programs have written to their end."""
        if self._output is not None and self._last is not None:
            await self._output.finish(self._last.processes)

    async def _is_begun_again(self, processes: tuple[Process, ...]) -> bool:
        """Start what made the attempt before end in a retry; return whether this reading shows it started.

        A triggerer that is killed after that starts nothing twice: what was started has another start time than the
        attempt before has kept.
        """
        due = processes_to_restart(self._config, processes, self._histories)
        due = [process for process in due if self._asked.get(process.full_name, True)]
        if not due:
            self._histories = histories_for_retry(self._config, processes, self._histories)
            self._is_retry = False
            return True
        # Started within the second of its last start, it would have the same start time: that second is waited for.
        if not any(process.now == process.start for process in due):
            await self._start_again([process for process in due if process.full_name not in self._asked])
        return False

    async def _start_again(self, processes: list[Process]) -> None:
        if not processes:
            return
        try:
            answers = await self._client.multicall(
                [(_CALLS[CrashLoopStep.RESUME], (process.full_name, False)) for process in processes]
            )
        except SupervisordUnavailable:
            return
        for process, answer in zip(processes, answers, strict=True):
            name = process.full_name
            if isinstance(answer, SupervisordRefused) and answer.code != _DONE_ALREADY[CrashLoopStep.RESUME]:
                self._log.warning("%s %s, and is not started again: %s", name, process.end, answer)
                if answer.code != _SHUTTING_DOWN:
                    self._asked[name] = False
            else:
                self._log.info("%s %s: it is started again", name, process.end)
                self._asked[name] = True

    def _judged(self, seen: Seen) -> Verdict:
        before, self._last = self._last, evaluate(self._config, seen.processes, self._histories)
        self._tell(before, self._last)
        self._seen, self._histories = seen, self._last.histories
        # Then another look at the same would find the same, whenever it is.
        self._is_calm = self._last.verdict.action is None and all(
            not history.restarts and not history.pauses and history.paused_until is None
            for history in self._histories.values()
        )
        return self._last.verdict

    def _tell(self, before: Evaluation | None, now: Evaluation) -> None:
        known = {} if before is None else _by_name(before)
        for name, process in _by_name(now).items():
            old = known.get(name)
            if old is None or (old.state, old.pid, old.start) != (process.state, process.pid, process.start):
                what = f"is {process.state.name}" if process.is_alive else process.end
                self._log.info("%s %s%s", name, what, f" (pid {process.pid})" if process.pid else "")
        for name, step in now.steps.items():
            if before is not None and before.steps.get(name) is step:
                continue
            if step is CrashLoopStep.PAUSE:
                history = now.histories[name]
                self._log.warning(
                    "%s is in a crash loop: it is kept stopped (pause %d)", name, history.pauses
                )
            else:
                self._log.info("%s has been kept stopped for long enough: it is started", name)

    async def _without_answer(self, error: Exception) -> Verdict | None:
        try:
            missing = await self._missing_directories()
        except MachineUnavailable as lost:
            if not self._is_lost:
                self._is_lost = True
                self._log.warning("The programs cannot be seen now, and go on: %s", lost)
            return None
        if missing:  # whoever makes it now is not asked
            return Verdict(Action.RETRIGGER, f"{error}, and {missing[0]} is gone")
        self._silent += 1
        if self._silent >= _SILENT_LOOKS:
            return Verdict(Action.RETRIGGER, f"{error}, {self._silent} times in a row")
        self._log.warning("%s", error)
        return None


def _by_name(seen: Evaluation) -> dict[str, Process]:
    return {process.full_name: process for own in seen.processes.values() for process in own}
