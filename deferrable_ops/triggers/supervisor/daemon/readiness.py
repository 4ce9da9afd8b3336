"""Decides in which order a step starts the programs, and waits until the programs are ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from deferrable_ops.supervisord.log_lines import OVERLAP, LogLines, LogPosition, fingerprint_of
from deferrable_ops.supervisord.policy import Action
from deferrable_ops.supervisord.processes import (
    Process,
    ProcessState,
    interpret_end,
    processes_by_program,
)
from deferrable_ops.triggers.supervisor.host import StepFailed, SupervisorHost
from deferrable_ops.triggers.supervisor.program_checks import failure_reason, network_check
from deferrable_ops.triggers.supervisor.watch.log_tail import LogTail, regular_file
from deferrable_ops.upstreams.machine.machine import Machine

_CHANGING: Final = frozenset({ProcessState.STARTING, ProcessState.BACKOFF, ProcessState.STOPPING})

# A last check that begins shortly before the end of ready_timeout may still end.
_SHORTEST_CHECK_SECONDS: Final = 1.0
_READ_BYTES: Final = 1_048_576


class Starts(Protocol):
    """The part of ``StartSnapshot`` that this module needs."""

    @property
    def logs(self) -> Mapping[str, Any]: ...

    def is_new(self, process: Process) -> bool:
        """Return whether the step has started the process."""
        ...


class NotReady(StepFailed):
    """Programs were not ready in time.

    :param programs: the names of these programs.
    """

    def __init__(self, message: str, programs: Collection[str], *, retryable: bool) -> None:
        super().__init__(message, retryable=retryable)
        self.programs = programs


async def log_positions(host: SupervisorHost, processes: Iterable[Process]) -> dict[str, Any]:
    """Return the ends of the logs in which the step will look for a LogLine, by the path of the log file. A step must
    save them before it starts the first program.
    """
    positions = {}
    for name, own in processes_by_program(host.cfg, processes).items():
        if "log" in (host.cfg.programs[name].ready or {}):
            for path in (path for process in own for path in _logs_of(process)):
                position = await _end_of(host.machine, Path(path))
                if position is not None:
                    positions[path] = position.to_json()
    return positions


class StartOrder:
    """Finds the programs that may be started, and the programs that are ready.

    :param host: the host of the supervisord.
    :param before: the start times of the processes and the ends of their logs, before the step started programs.
    """

    def __init__(self, host: SupervisorHost, before: Starts) -> None:
        self._host = host
        self._before = before
        self._ready: set[str] = set()
        self._over: dict[str, Process] = {}
        self._deadlines: dict[str, float] = {}
        self._reasons: dict[str, str] = {}
        self._logs: dict[str, LogTail[str]] = {}
        self._requested: Collection[str] = ()
        self._is_used = any(program.ready or program.after for program in host.cfg.programs.values())

    async def update(self, found: Sequence[Process], requested: Collection[str]) -> list[Process]:
        """Run the checks of the programs that have started, and return the processes that may run now. These are the
        processes of all programs whose ``after`` are ready.

        :param found: the processes of all programs.
        :param requested: the full names of the processes that the step has asked supervisord to start.
        :raises NotReady: if a program is not ready within its ``ready_timeout``.
        """
        if not self._is_used:
            return [*found]
        self._requested = requested
        by_program = processes_by_program(self._host.cfg, found)
        starting = [name for name, own in by_program.items() if self._is_started(name, own)]
        reasons = await asyncio.gather(*(self._problem(name, by_program[name]) for name in starting))
        late = []
        for name, reason in zip(starting, reasons, strict=True):
            if reason is None:
                self._set_ready(name)
            else:
                self._reasons[name] = reason
                if time.monotonic() >= self._deadlines[name]:
                    late.append(name)
        if late:
            raise self._not_ready(late)
        allowed = {
            process.full_name
            for name, own in by_program.items()
            if self._ready.issuperset(self._host.cfg.programs[name].after)
            for process in own
        }
        return [process for process in found if process.full_name in allowed]

    @property
    def is_waiting(self) -> bool:
        """Whether a program may still become ready, or may still be started."""
        done = self._ready | self._over.keys()
        # A program behind a program that has ended is never started.
        return self._is_used and any(
            name not in done and not any(self._blocks(ended, name) for ended in self._over)
            for name in self._host.cfg.programs
        )

    def check_blocked(self, log: Any) -> None:
        """Report the programs that were not started, because a program in their ``after`` ended before it was ready.

        If the policy requires a retrigger for this end, only log a warning: the task that watches the programs
        triggers the DAG again.

        :raises StepFailed: if the policy requires no retrigger for this end.
        """
        cfg = self._host.cfg
        for name, process in self._over.items():
            blocked = [other for other in cfg.programs if self._blocks(name, other)]
            if not blocked:
                continue
            action = interpret_end(process, cfg.programs[name], cfg.policy_of(name))
            reason = f"{', '.join(blocked)} not started, because {process.full_name} {process.end} before it was ready"
            if action is not Action.RETRIGGER:
                raise StepFailed(f"{reason}; read its log", retryable=action is not Action.FAIL)
            log.warning("%s", reason)

    def _is_started(self, name: str, own: Sequence[Process]) -> bool:
        """Return whether the program has started, and may become ready. Note the programs that have ended."""
        if name in self._ready or any(process.state in _CHANGING for process in own):
            return False
        if not all(process.is_alive or self._is_started_here(process) for process in own):
            return False
        program, policy = self._host.cfg.programs[name], self._host.cfg.policy_of(name)
        for process in own:
            action = interpret_end(process, program, policy)
            if action is not None and (program.ready or action is not Action.SUCCESS):
                self._over[name] = process
                return False
        self._deadlines.setdefault(name, time.monotonic() + program.ready_timeout.total_seconds())
        return True

    def _is_started_here(self, process: Process) -> bool:
        # Start times are whole seconds, so a process that was restarted within a second does not look new.
        return self._before.is_new(process) or process.full_name in self._requested

    def _blocks(self, ended: str, name: str) -> bool:
        """Return whether a program is not started because `ended` was never ready."""
        if name in self._ready:
            return False
        after = self._host.cfg.programs[name].after
        return ended in after or any(self._blocks(ended, other) for other in after)

    async def _problem(self, name: str, own: Sequence[Process]) -> str | None:
        """Return why a program that has started is not ready yet; None if it is ready."""
        given = self._host.cfg.programs[name].ready
        if given is None:
            return None
        for process in own:
            if not process.is_alive:
                return f"{process.full_name} {process.end}"
        if (check := network_check(given)) is None:
            return await self._missing_line(name, own, given["log"]["contains"])
        left = max(_SHORTEST_CHECK_SECONDS, self._deadlines[name] - time.monotonic())
        try:
            async with asyncio.timeout(left):
                return await failure_reason(check)
        except TimeoutError:
            return f"its check did not end within {left:.1f} s"

    async def _missing_line(self, name: str, own: Sequence[Process], text: str) -> str | None:
        for process in own:
            # The line of a process that ran before this step may be in a log file that was deleted.
            if self._is_started_here(process) and not await self._has_written(name, process, text):
                return f"{process.full_name} has not written a line that contains {text!r}"
        return None

    async def _has_written(self, name: str, process: Process, text: str) -> bool:
        paths = _logs_of(process)
        statuses = await self._host.machine.status(*map(Path, paths), inodes=True)
        for path, status in zip(paths, statuses, strict=True):
            log = self._log(name, path)
            has_more = True
            while has_more:
                chunk = await log.read(self._host.machine, regular_file(status), _READ_BYTES)
                if any(text in line for line in chunk.parts):
                    return True
                has_more = chunk.has_more and chunk.size > 0
        return False

    def _log(self, name: str, path: str) -> LogTail[str]:
        if path not in self._logs:
            program = self._host.cfg.programs[name]
            backups = max(program.stdout_logfile_backups, program.stderr_logfile_backups)
            position = LogPosition.from_json(self._before.logs.get(path))
            self._logs[path] = LogTail(name, Path(path), backups, LogLines, position, 0.0, False)
        return self._logs[path]

    def _set_ready(self, name: str) -> None:
        self._ready.add(name)
        if self._host.cfg.programs[name].ready:
            self._host.log.info("%s is ready", name)

    def _not_ready(self, late: list[str]) -> NotReady:
        cfg = self._host.cfg
        reasons = [
            f"{name} was not ready within {cfg.programs[name].ready_timeout.total_seconds():g} s: {self._reasons[name]}"
            for name in late
        ]
        retryable = all(cfg.policy_of(name).otherwise is not Action.FAIL for name in late)
        message = f"{'; '.join(reasons)}. Read the log of the program, or raise ready_timeout"
        return NotReady(message, late, retryable=retryable)


def _logs_of(process: Process) -> list[str]:
    return [path for path in dict.fromkeys((process.stdout_log, process.stderr_log)) if path]


async def _end_of(machine: Machine, path: Path) -> LogPosition | None:
    """Return the position at the end of a log file; None if the file does not exist."""
    (found,) = await machine.status(path, inodes=True)
    status = regular_file(found)
    if status is None:
        return None
    overlap = min(status.size, OVERLAP)
    before = await machine.read(path, status.size - overlap, overlap)
    return LogPosition(status.inode, status.size, fingerprint_of(before or b""), status.modified)
