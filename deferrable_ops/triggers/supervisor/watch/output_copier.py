"""Copies the output of programs from their log files to another place.

After a restart of the triggerer, copying continues where it ended.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, TypeVar

from deferrable_ops.exceptions import MachineRefused, MachineUnavailable
from deferrable_ops.supervisord.log_lines import LogPosition
from deferrable_ops.supervisord.processes import Process
from deferrable_ops.supervisord.program_sections import ProgramConfiguration
from deferrable_ops.triggers.supervisor.configuration import is_remote
from deferrable_ops.triggers.supervisor.host import SupervisorHost
from deferrable_ops.triggers.supervisor.watch.log_tail import LogContent, LogTail, regular_file
from deferrable_ops.triggers.supervisor.watch.saved_state import SavedState
from deferrable_ops.upstreams.machine.machine import FileStatus

T = TypeVar("T")

_MAX_BACKUPS: Final = 100
_DEVICES: Final = Path("/dev")
# With less space, the disk counts as full.
_FULL_BYTES: Final = 2**20
_SIZES: Final = {"KB": 2**10, "MB": 2**20, "GB": 2**30}


class OutputCopier(Generic[T]):
    """Copies the output of all programs in a configuration.

    :param saved: the saved state of the task, with a position in each log file. All output before this position was
        already copied.
    """

    read_as: ClassVar[Callable[[LogPosition], LogContent[Any]]]
    """The class that converts the bytes of a log: LogLines or LogBytes. Each subclass sets this attribute."""

    space_check_interval: ClassVar[float] = 60.0
    """Seconds between two checks whether a disk with log files is full."""

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
        self._logs: dict[Path, LogTail[T]] = {}
        self._last_error = ""
        # The paths of logs whose output cannot be copied, such as /dev/stdout. Each is reported once.
        self._unreadable: set[Path] = set()
        # The directories of logs that are on a full disk, and the time of the next check.
        self._full: set[Path] = set()
        self._space_due = 0.0

    @property
    def state(self) -> dict[str, Any]:
        """The current position in each log file, as a JSON object. The caller must save this object."""
        positions = self._saved | {str(path): log.position for path, log in self._logs.items()}
        return {path: position.to_json() for path, position in positions.items() if position is not None}

    async def forward(self, found: Mapping[str, Iterable[Process]]) -> None:
        """Copy new output of the programs, up to the limit for one poll.

        :param found: the processes of each program, by the program's name.
        """
        await self._try_copy(self._logs_of(found), is_last=False)

    async def finish(self, found: Mapping[str, Iterable[Process]]) -> None:
        """Copy the remaining output of processes that have ended, and new output of the other processes."""
        await self.forward(found)
        ended = {name: [process for process in own if not process.is_alive] for name, own in found.items()}
        await self._try_copy(self._logs_of(ended), is_last=True)

    @abstractmethod
    async def copy(self, waiting: list[tuple[LogTail[T], FileStatus | None]], *, is_last: bool) -> None:
        """Copy new output.

        :param waiting: the logs that may have new output, and the status of their files. The logs with little new
            output come first.
        :param is_last: whether the processes have ended.
        :raises OSError: if the output could not be written.
        """

    async def end(self, logs: list[LogTail[T]]) -> None:
        """Copy the rest of the output of processes that have ended, such as a last line without a newline."""

    def report_gap(self, log: LogTail[T]) -> None:
        """Write to the task's log that output may be missing."""
        self._log.warning(
            "[%s] output may be missing here, because the log file of the program was removed or emptied",
            log.label,
        )

    async def _try_copy(self, logs: list[LogTail[T]], *, is_last: bool) -> None:
        try:
            waiting = await self._with_output(logs, is_last=is_last)
            if waiting:
                await self.copy(waiting, is_last=is_last)
            if is_last:
                await self.end(logs)
        except (MachineUnavailable, MachineRefused) as error:
            self._report(f"Could not read the programs' output; trying again later: {error}")
        except OSError as error:
            self._report(f"Could not write the programs' output; trying again later: {error}")
        else:
            self._last_error = ""

    async def _with_output(
        self, logs: list[LogTail[T]], *, is_last: bool
    ) -> list[tuple[LogTail[T], FileStatus | None]]:
        if not logs:
            return []
        statuses = await self._machine.status(*(log.path for log in logs), inodes=self._inodes)
        for log, status in zip(logs, statuses, strict=True):
            if status is not None and not status.is_regular:
                self._report_unreadable(log.label, log.path)
        existing = {log.path.parent for log, status in zip(logs, statuses, strict=True) if status is not None}
        await self._report_full_disks(sorted(existing), is_last=is_last)
        current = zip(logs, map(regular_file, statuses), strict=True)
        waiting = [(log, status) for log, status in current if log.may_have_output(status)]
        return sorted(waiting, key=lambda one: one[0].unread(one[1]))

    async def _report_full_disks(self, folders: list[Path], *, is_last: bool) -> None:
        """Report full disks in the task's log, because supervisord reports nothing if it cannot write output to a log
        file.
        """
        now = time.monotonic()
        if not folders or (now < self._space_due and not is_last):
            return
        self._space_due = now + self.space_check_interval
        space = zip(folders, await self._machine.free_space(*folders), strict=True)
        full = {folder for folder, free in space if free is not None and free < _FULL_BYTES}
        for folder in sorted(full - self._full):
            self._log.warning(
                "The disk of %s on %s is full, so supervisord loses output of the programs; free some space",
                folder,
                self._machine.name,
            )
        self._full = full

    def _report_unreadable(self, label: str, path: Path) -> None:
        if path not in self._unreadable:
            self._unreadable.add(path)
            self._log.warning(
                "[%s] output is not copied, because the log file %s is not a regular file; remove stdout_logfile and "
                "stderr_logfile from the program, or set them to files",
                label,
                path,
            )

    def _report(self, problem: str) -> None:
        if problem != self._last_error:
            self._last_error = problem
            self._log.warning("%s", problem)

    def _logs_of(self, found: Mapping[str, Iterable[Process]]) -> list[LogTail[T]]:
        return [
            log
            for name, own in found.items()
            for process in own
            for log in self._logs_of_process(name, process)
        ]

    def _logs_of_process(self, name: str, process: Process) -> Iterator[LogTail[T]]:
        program = self._programs[name]
        for path, suffix, (max_bytes, backups) in (
            (process.stdout_log, "", _rotation(program, "stdout")),
            (process.stderr_log, " stderr", _rotation(program, "stderr")),
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
                    label + suffix,
                    Path(path),
                    max_bytes,
                    backups,
                    type(self).read_as,
                    position,
                    process.start - 1.0,
                    self._reports_gaps,
                )
                self._logs[log.path] = log
            yield log


def _rotation(program: ProgramConfiguration, channel: str) -> tuple[int, int]:
    """Return the size in bytes at which supervisord rotates one log file of a program, and the maximum number of
    rotated files. Both are 0 if the log file is not rotated.
    """
    size: str = getattr(program, f"{channel}_logfile_maxbytes").upper()
    backups: int = getattr(program, f"{channel}_logfile_backups")
    max_bytes = int(size.rstrip("KMGB")) * _SIZES.get(size[-2:], 1)
    return (max_bytes, min(backups, _MAX_BACKUPS)) if max_bytes else (0, 0)
