"""Decides in which order a step starts the programs, and waits until the programs are ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from deferrable_ops.supervisord.log_lines import OVERLAP, LogLines, LogPosition, fingerprint_of
from deferrable_ops.supervisord.policy import Action
from deferrable_ops.supervisord.processes import (
    ALIVE,
    Process,
    ProcessState,
    interpret_end,
    processes_by_program,
)
from deferrable_ops.triggers.supervisor.host import StepFailed, SupervisorHost
from deferrable_ops.triggers.supervisor.program_checks import describe, failure_reason, network_check
from deferrable_ops.triggers.supervisor.watch.log_tail import LogTail, regular_file
from deferrable_ops.upstreams.machine.machine import Machine

CHANGING: Final = frozenset({ProcessState.STARTING, ProcessState.BACKOFF, ProcessState.STOPPING})
"""The states of a process that supervisord is starting or stopping."""

# A last check that begins shortly before the end of ready_timeout may still end.
_SHORTEST_CHECK_SECONDS: Final = 1.0
_READ_BYTES: Final = 1_048_576


@dataclass(frozen=True, slots=True)
class StartSnapshot:
    """The start times of all processes before a step starts programs.

    :param starts: the time of the newest start of each process, by the process's full name; 0 if the process was never
        started. The times are whole seconds since 1970 on supervisord's clock.
    :param restart: whether the step also restarts processes that are running.
    :param logs: a dict with the path of each log file in which the step searches for a LogLine, and the position at the
        end of this file; None if these positions are not known yet.
    """

    starts: Mapping[str, int]
    restart: bool
    logs: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, processes: Iterable[Process], *, restart: bool) -> Self:
        """Return a snapshot of the start times of the given processes."""
        return cls({process.full_name: process.start for process in processes}, restart)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the snapshot from the JSON object that :meth:`as_json` returned."""
        return cls(dict(data["starts"]), bool(data["restart"]), data.get("logs"))

    def as_json(self) -> dict[str, Any]:
        """Return the snapshot as a JSON object."""
        data = {"starts": dict(self.starts), "restart": self.restart}
        return data if self.logs is None else data | {"logs": dict(self.logs)}

    def is_new(self, process: Process) -> bool:
        """Return whether the newest start of a process is later than its start in the snapshot."""
        return process.start > self.starts.get(process.full_name, 0)

    async def with_logs(self, host: SupervisorHost) -> Self:
        """Return the snapshot with the ends of the logs in which the step looks for a LogLine.

        A step must save this snapshot before it starts the first program. If no program has a LogLine, the snapshot is
        returned unchanged.
        """
        programs = {name for name, program in host.cfg.programs.items() if "log" in (program.ready or {})}
        if self.logs is not None or not programs:
            return self
        logs = {}
        for name, own in processes_by_program(host.cfg, await host.processes()).items():
            for process in own if name in programs else ():
                # The log of a process that this step has started may already contain the line.
                for path in () if self.is_new(process) else _logs_of(process):
                    position = await _end_of(host.machine, Path(path))
                    if position is not None:
                        logs[path] = position.to_json()
        return replace(self, logs=logs)


class NotReady(StepFailed):
    """Programs were not ready in time.

    :param reasons: a dict with the name of each of these programs, and the reason why the program is not ready.
    """

    def __init__(self, message: str, reasons: Mapping[str, str], *, retryable: bool) -> None:
        super().__init__(message, retryable=retryable)
        self.reasons = reasons


class StartOrder:
    """Finds the programs that may be started, and the programs that are ready.

    :param host: the host of the supervisord.
    :param before: the start times of the processes and the ends of their logs, before the step started programs.
    :param only: the names of the programs to start. A program does not wait for programs that are not in `only`.
    """

    def __init__(self, host: SupervisorHost, before: StartSnapshot, only: Collection[str]) -> None:
        self._host = host
        self._before = before
        self._programs = {name: program for name, program in host.cfg.programs.items() if name in only}
        self._after = {
            name: [other for other in program.after if other in only]
            for name, program in self._programs.items()
        }
        # The full names of the processes that the step has asked supervisord to start.
        self._requested: set[str] = set()
        self._ready: set[str] = set()
        # The programs that have ended before they were ready, each with the process that has ended.
        self._ended: dict[str, Process] = {}
        self._deadlines: dict[str, float] = {}
        self._logs: dict[str, LogTail[str]] = {}

    async def next(self, found: Sequence[Process]) -> list[Process]:
        """Run the checks of the programs that have started, and return the processes that the step must start now.

        :param found: the processes of all programs.
        :raises NotReady: if a program was not ready within its ``ready_timeout``.
        """
        own = processes_by_program(self._host.cfg, found)
        started = [name for name in self._programs if self._has_started(name, own[name])]
        reasons = await asyncio.gather(*(self._missing(name, own[name]) for name in started))
        late: dict[str, str] = {}
        for name, reason in zip(started, reasons, strict=True):
            if reason is None:
                self._set_ready(name)
            elif (ended := self._ended_process(name, own[name])) is not None:
                self._ended[name] = ended
            elif time.monotonic() >= self._deadlines[name]:
                late[name] = reason
        if late:
            raise self._not_ready(late)
        allowed = {
            process.full_name
            for name in self._programs
            if self._ready.issuperset(self._after[name])
            for process in own[name]
        }
        due = [
            process
            for process in found
            if process.full_name in allowed and process.state not in ALIVE and not self._was_started(process)
        ]
        self._requested.update(process.full_name for process in due)
        return due

    @property
    def is_waiting(self) -> bool:
        """Whether a program may still become ready, or may still be started."""
        return any(
            name not in self._ready and name not in self._ended and not self._blocking(name)
            for name in self._programs
        )

    def check_blocked(self) -> None:
        """Raise an error if programs were not started, because a program in their ``after`` ended before it was ready.

        If the policy of the ended program requires a retrigger, only log a warning, because the task that watches the
        programs then triggers the DAG again.

        :raises StepFailed: if the policy of the ended program requires no retrigger.
        """
        for name, process in self._ended.items():
            blocked = [other for other in self._programs if name in self._blocking(other)]
            if not blocked:
                continue
            action = self._action(name, process)
            reason = f"{', '.join(blocked)} not started, because {process.full_name} {process.end} before it was ready"
            if action is not Action.RETRIGGER:
                raise StepFailed(f"{reason}; read its log", retryable=action is not Action.FAIL)
            self._host.log.warning("%s", reason)

    def _has_started(self, name: str, own: Sequence[Process]) -> bool:
        """Return whether a program has started, but is not known to be ready or to have ended."""
        if name in self._ready or name in self._ended or any(process.state in CHANGING for process in own):
            return False
        if not all(process.is_alive or self._was_started(process) for process in own):
            return False
        seconds = self._programs[name].ready_timeout.total_seconds()
        self._deadlines.setdefault(name, time.monotonic() + seconds)
        return True

    def _was_started(self, process: Process) -> bool:
        # Start times are whole seconds, so a process that was restarted within a second does not look new.
        return self._before.is_new(process) or process.full_name in self._requested

    def _action(self, name: str, process: Process) -> Action | None:
        return interpret_end(process, self._programs[name], self._host.cfg.policy_of(name))

    def _ended_process(self, name: str, own: Sequence[Process]) -> Process | None:
        return next((process for process in own if self._action(name, process) is not None), None)

    def _blocking(self, name: str) -> set[str]:
        """Return the programs that ended before they were ready, and that therefore prevent the start of the program
        `name`.
        """
        if name in self._ready:
            return set()
        after = self._after[name]
        return (self._ended.keys() & after).union(*(self._blocking(other) for other in after))

    async def _missing(self, name: str, own: Sequence[Process]) -> str | None:
        """Return the reason why a program that has started is not ready; None if the program is ready."""
        ready = self._programs[name].ready
        for process in own:
            if not self._may_be_ready(name, process):
                return f"{process.full_name} {process.end}"
        if ready is None:
            return None
        if (check := network_check(ready)) is None:
            return await self._missing_line(name, own, ready["log"]["contains"])
        left = max(_SHORTEST_CHECK_SECONDS, self._deadlines[name] - time.monotonic())
        try:
            async with asyncio.timeout(left):
                return await failure_reason(check)
        except TimeoutError:
            return f"the check did not end within {left:.1f} s"

    def _may_be_ready(self, name: str, process: Process) -> bool:
        if process.is_alive:
            return True
        ready, action = self._programs[name].ready, self._action(name, process)
        if ready is None:
            return action in (None, Action.SUCCESS)
        # The program may have written the line before it ended.
        return "log" in ready and action is Action.SUCCESS

    async def _missing_line(self, name: str, own: Sequence[Process], text: str) -> str | None:
        for process in own:
            # The line of a process that ran before this step may be in a log file that was deleted.
            if self._was_started(process) and not await self._has_written(name, process, text):
                return f"{process.full_name} has not written a line with this text"
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
            program = self._programs[name]
            backups = max(program.stdout_logfile_backups, program.stderr_logfile_backups)
            position = LogPosition.from_json((self._before.logs or {}).get(path))
            self._logs[path] = LogTail(name, Path(path), 0, backups, LogLines, position, 0.0, False)
        return self._logs[path]

    def _set_ready(self, name: str) -> None:
        self._ready.add(name)
        if self._programs[name].ready:
            self._host.log.info("%s is ready", name)

    def _not_ready(self, late: Mapping[str, str]) -> NotReady:
        message = "; ".join(
            f"{name} was not ready within {self._programs[name].ready_timeout.total_seconds():g} s. Its check "
            f"ready={describe(self._programs[name].ready)} failed: {reason}"
            for name, reason in late.items()
        )
        retryable = all(self._host.cfg.policy_of(name).otherwise is not Action.FAIL for name in late)
        return NotReady(
            f"{message}. Read the program's log, or raise ready_timeout", late, retryable=retryable
        )


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
