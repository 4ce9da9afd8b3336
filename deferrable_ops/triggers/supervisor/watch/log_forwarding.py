"""Copies the output of programs from their log files to the log of the task that watches them.

After a restart of the triggerer, copying continues where it ended: no line is lost or copied twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from deferrable_ops.exceptions import MachineRefused, MachineUnavailable
from deferrable_ops.supervisord.log_lines import LogPosition
from deferrable_ops.supervisord.processes import Process
from deferrable_ops.supervisord.program_sections import ProgramConfiguration
from deferrable_ops.triggers.supervisor.configuration import is_remote
from deferrable_ops.triggers.supervisor.host import SupervisorHost
from deferrable_ops.triggers.supervisor.watch.log_tail import LogTail, regular_file
from deferrable_ops.triggers.supervisor.watch.saved_state import SavedState
from deferrable_ops.upstreams.machine.machine import FileStatus

_MIN_CHUNK: Final = 4096

# For the limit of bytes per poll, each line counts as at least this many bytes. Even an empty line takes time to copy.
_MIN_LINE_COST: Final = 64

_MAX_BACKUPS: Final = 100

_DEVICES: Final = Path("/dev")

# After this many lines (a few milliseconds), let the other triggers on the event loop run.
_LINES_PER_TURN: Final = 50


class LogForwarder:
    """Copies the output of all programs in a configuration to the task's log.

    :param saved: the saved state of the task, with a position in each log file. All lines before this position were
        already copied.
    """

    # A class attribute, because an instance attribute would need memory for each watching task.
    chunks_per_poll: ClassVar[int] = 8
    """The maximum number of chunks per poll, for all logs together. The next polls read the rest of the output."""

    def __init__(self, host: SupervisorHost, saved: SavedState) -> None:
        self._programs = host.cfg.programs
        self._chunk = host.cfg.log_chunk_size
        self._machine = host.machine
        self._log = host.log
        # On the local host, inodes need no additional time. Over SSH, a command must be run to read them.
        self._inodes = not is_remote(host.cfg)
        self._saved = {path: LogPosition.from_json(position) for path, position in saved.output.items()}
        # A missing log file is reported as a gap only if this DAG run saved the positions.
        self._reports_gaps = saved.is_ours
        self._logs: dict[Path, LogTail] = {}
        self._last_error = ""
        # The paths of logs whose output cannot be copied, such as /dev/stdout. Each is reported once.
        self._unreadable: set[Path] = set()

    @property
    def state(self) -> dict[str, Any]:
        """The current position in each log file, as a JSON object. The caller must save this object."""
        positions = self._saved | {str(path): log.position for path, log in self._logs.items()}
        return {path: position.to_json() for path, position in positions.items() if position is not None}

    async def forward(self, found: Mapping[str, Iterable[Process]]) -> None:
        """Copy new output of the programs to the task's log, up to the size limit for one poll.

        :param found: the processes of each program, by the program's name.
        """
        await self._try_copy(self._logs_of(found), self.chunks_per_poll * self._chunk)

    async def finish(self, found: Mapping[str, Iterable[Process]]) -> None:
        """Copy all remaining output of processes that have ended. Copy new output of the other processes up to the size
        limit for one poll.
        """
        await self.forward(found)
        ended = {name: [process for process in own if not process.is_alive] for name, own in found.items()}
        logs = self._logs_of(ended)
        if await self._try_copy(logs, None):
            for log in logs:
                await self._write(log, log.finish())

    async def _try_copy(self, logs: list[LogTail], limit: int | None) -> bool:
        try:
            await self._copy(logs, limit)
        except (MachineUnavailable, MachineRefused) as error:
            if str(error) != self._last_error:
                self._last_error = str(error)
                self._log.warning("Could not read the programs' output; trying again later: %s", error)
            return False
        self._last_error = ""
        return True

    async def _copy(self, logs: list[LogTail], limit: int | None) -> None:
        """Copy new output in rounds. In each round, copy one chunk from each log file that has more output.

        :param limit: approximate maximum number of bytes to copy from all log files together; None means no limit.
        """
        if not logs:
            return
        statuses = await self._machine.status(*(log.path for log in logs), inodes=self._inodes)
        for log, status in zip(logs, statuses, strict=True):
            if status is not None and not status.is_regular:
                self._report_unreadable(log.label, log.path)
        current = zip(logs, map(regular_file, statuses), strict=True)
        waiting = [(log, status) for log, status in current if log.may_have_output(status)]
        while waiting and (limit is None or limit > 0):
            length = self._chunk
            if limit is not None:
                length = max(min(length, limit // len(waiting)), min(length, _MIN_CHUNK))
            unfinished: list[tuple[LogTail, FileStatus | None]] = []
            for log, status in waiting:
                chunk = await log.read(self._machine, status, length)
                if chunk.has_gap:
                    self._log.warning(
                        "[%s] output may be missing here, because its log file was removed or emptied",
                        log.label,
                    )
                await self._write(log, chunk.lines)
                if limit is not None:
                    limit -= max(chunk.size, _MIN_LINE_COST * len(chunk.lines))
                if chunk.has_more:
                    unfinished.append((log, status))
            waiting = unfinished

    def _report_unreadable(self, label: str, path: Path) -> None:
        if path not in self._unreadable:
            self._unreadable.add(path)
            self._log.warning(
                "[%s] output is not copied to this log, because the log file %s is not a regular file; remove "
                "stdout_logfile and stderr_logfile from the program, or set them to files",
                label,
                path,
            )

    async def _write(self, log: LogTail, lines: list[str]) -> None:
        for number, line in enumerate(lines, 1):
            self._log.info("[%s] %s", log.label, line)
            if not number % _LINES_PER_TURN:
                await asyncio.sleep(0)

    def _logs_of(self, found: Mapping[str, Iterable[Process]]) -> list[LogTail]:
        return [
            log
            for name, own in found.items()
            for process in own
            for log in self._logs_of_process(name, process)
        ]

    def _logs_of_process(self, name: str, process: Process) -> Iterator[LogTail]:
        program = self._programs[name]
        for path, suffix, backups in (
            (process.stdout_log, "", _backups(program, "stdout")),
            (process.stderr_log, " stderr", _backups(program, "stderr")),
        ):
            if not path or not (process.start or path in self._saved):
                continue
            if (log := self._logs.get(Path(path))) is None:
                label = process.name if process.name == process.group else process.full_name
                # For the program, this is its own output. For this process, it would be another file.
                if Path(path).is_relative_to(_DEVICES):
                    self._report_unreadable(label + suffix, Path(path))
                    continue
                position = self._saved.get(path)
                log = LogTail(
                    label + suffix, Path(path), backups, position, process.start - 1.0, self._reports_gaps
                )
                self._logs[log.path] = log
            yield log


def _backups(program: ProgramConfiguration, channel: str) -> int:
    """Return the maximum number of rotated files that supervisord keeps for one log file of a program."""
    size: str = getattr(program, f"{channel}_logfile_maxbytes")
    rotates = int(size.rstrip("KMGBkmgb")) > 0
    backups: int = getattr(program, f"{channel}_logfile_backups")
    return min(backups, _MAX_BACKUPS) if rotates else 0
