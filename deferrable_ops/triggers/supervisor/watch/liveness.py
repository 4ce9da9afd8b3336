"""Runs the check ``healthy`` of programs that are watched, and restarts a program whose check fails."""

from __future__ import annotations

import asyncio
import time

from deferrable_ops.checks import ReadyCheck
from deferrable_ops.supervisord.processes import Process, ProcessState
from deferrable_ops.supervisord.program_sections import ProgramConfiguration
from deferrable_ops.triggers.supervisor.host import SupervisorHost
from deferrable_ops.triggers.supervisor.program_checks import describe, failure_reason, network_check
from deferrable_ops.triggers.supervisor.watch.program_watcher import ProgramWatcher


def start_liveness_checks(host: SupervisorHost, watcher: ProgramWatcher) -> tuple[asyncio.Task[None], ...]:
    """Start the liveness checks of all programs, and return the running asyncio tasks, which the caller must cancel.

    The checks run at the same time as the polls of supervisord, so that a check that hangs delays no poll.
    """
    checks = [
        LivenessCheck(name, program, check, host, watcher)
        for name, program in host.cfg.programs.items()
        if (check := network_check(program.healthy)) is not None
    ]
    return tuple(asyncio.create_task(check.run()) for check in checks)


class LivenessCheck:
    """The liveness check of one program.

    :param name: the name of the program.
    :param watcher: the watcher that restarts the program.
    """

    def __init__(
        self,
        name: str,
        program: ProgramConfiguration,
        check: ReadyCheck,
        host: SupervisorHost,
        watcher: ProgramWatcher,
    ) -> None:
        self._name = name
        self._program = program
        self._check = check
        self._interval = host.cfg.check_interval.total_seconds()
        self._log = host.log
        self._watcher = watcher
        self._pids: tuple[int, ...] = ()
        self._failures = 0
        # The end of ready_timeout of the present processes, on the monotonic clock; 0 after a check has passed.
        self._counts_from = 0.0

    async def run(self) -> None:
        """Run the check again and again, until the asyncio task is cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            running = self._running()
            if not running:
                continue
            self._note_restart(running)
            reason = await failure_reason(self._check)
            if _pids(self._running()) == self._pids:
                self._note_result(reason, running)

    def _running(self) -> tuple[Process, ...]:
        """Return the processes of the program; an empty tuple if not all of them are running."""
        own = self._watcher.programs.get(self._name, ())
        is_running = all(
            process.state is ProcessState.RUNNING and not self._watcher.is_paused(process) for process in own
        )
        return own if is_running else ()

    def _note_restart(self, running: tuple[Process, ...]) -> None:
        if _pids(running) != self._pids:
            age = min(process.now - process.start for process in running)
            left = self._program.ready_timeout.total_seconds() - max(0, age)
            self._pids, self._failures = _pids(running), 0
            self._counts_from = time.monotonic() + max(0.0, left)

    def _note_result(self, reason: str | None, running: tuple[Process, ...]) -> None:
        if reason is None:
            if self._failures:
                self._log.info("%s is healthy again", self._name)
            self._failures, self._counts_from = 0, 0.0
            return
        if time.monotonic() < self._counts_from:
            return
        self._failures += 1
        threshold = self._program.failure_threshold
        self._log.warning(
            "%s is not healthy (failed check %d of %d): %s", self._name, self._failures, threshold, reason
        )
        if self._failures >= threshold:
            self._failures = 0
            self._log.warning(
                "Restarting %s, because its check healthy=%s failed %d times in a row",
                self._name,
                describe(self._program.healthy),
                threshold,
            )
            self._watcher.note_not_ready({self._name: reason})
            self._watcher.restart(running)


def _pids(processes: tuple[Process, ...]) -> tuple[int, ...]:
    return tuple(process.pid for process in processes)
