"""The output of programs, copied from their logs to the task's: each line once, however often all is restarted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from deferrable_ops.exceptions import MachineRefused, MachineUnavailable
from deferrable_ops.supervisord.log_lines import LogPosition
from deferrable_ops.supervisord.processes import Process
from deferrable_ops.supervisord.program_sections import ProgramConfiguration
from deferrable_ops.triggers.supervisor.configuration import is_remote
from deferrable_ops.triggers.supervisor.host import SupervisorHost
from deferrable_ops.triggers.supervisor.watch.log_tail import Log, regular
from deferrable_ops.triggers.supervisor.watch.saved_state import SavedState
from deferrable_ops.upstreams.machine.machine import FileStatus

_CHUNKS_A_LOOK: Final = 8  # of all logs together: who writes more is caught up with, look by look
_SHORTEST_CHUNK: Final = 4096
_COST_OF_A_LINE: Final = 64  # in bytes: an empty one is work too
_MOST_BACKUPS: Final = 100
_LINES_AT_ONCE: Final = 50  # a few milliseconds of the loop, which all triggers share


class LogForwarder:
    """The logs of a configuration's programs, and how far each was copied.

    :param kept: how far each was copied before.
    """

    def __init__(self, host: SupervisorHost, kept: SavedState) -> None:
        self._programs = host.cfg.programs
        self._chunk = host.cfg.log_chunk_size
        self._machine = host.machine
        self._log = host.log
        self._inodes = not is_remote(host.cfg)  # they are told for nothing
        self._kept = {path: LogPosition.from_json(place) for path, place in kept.output.items()}
        self._is_ours = kept.is_ours  # what is gone since then is missed
        self._logs: dict[Path, Log] = {}
        self._trouble = ""

    @property
    def state(self) -> dict[str, Any]:
        """What must be kept so that no line is lost or repeated, as a JSON object."""
        places = self._kept | {str(path): log.place for path, log in self._logs.items()}
        return {path: place.to_json() for path, place in places.items() if place is not None}

    async def forward(self, found: Mapping[str, Iterable[Process]]) -> None:
        """Copy what was written since the last time; no more of it than is good for one look.

        :param found: each program's processes.
        """
        await self._try(self._logs_of(found), _CHUNKS_A_LOOK * self._chunk)

    async def finish(self, found: Mapping[str, Iterable[Process]]) -> None:
        """Copy all that ended processes have written, and of the others as much as is good for one look."""
        await self.forward(found)
        ended = {name: [process for process in own if not process.is_alive] for name, own in found.items()}
        logs = self._logs_of(ended)
        if await self._try(logs, None):
            for log in logs:
                await self._tell(log, log.finish())

    async def _try(self, logs: list[Log], most: int | None) -> bool:
        try:
            await self._copy(logs, most)
        except (MachineUnavailable, MachineRefused) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                self._log.warning("The programs' output cannot be read now, and is read later: %s", error)
            return False
        self._trouble = ""
        return True

    async def _copy(self, logs: list[Log], most: int | None) -> None:
        """Copy what is new, a chunk of each log in turn.

        :param most: bytes of all of them together, roughly; None: all that there is.
        """
        if not logs:
            return
        statuses = await self._machine.status(*(log.path for log in logs), inodes=self._inodes)
        looked_at = zip(logs, map(regular, statuses), strict=True)
        waiting = [(log, now) for log, now in looked_at if log.has_news(now)]
        while waiting and (most is None or most > 0):
            length = self._chunk
            if most is not None:
                length = max(min(length, most // len(waiting)), min(length, _SHORTEST_CHUNK))
            going_on: list[tuple[Log, FileStatus | None]] = []
            for log, now in waiting:
                read = await log.read(self._machine, now, length)
                if read.is_gapped:
                    self._log.warning(
                        "[%s] output may be missing here: its file is gone, or was emptied", log.label
                    )
                await self._tell(log, read.lines)
                if most is not None:
                    most -= max(read.size, _COST_OF_A_LINE * len(read.lines))
                if read.goes_on:
                    going_on.append((log, now))
            waiting = going_on

    async def _tell(self, log: Log, lines: list[str]) -> None:
        for number, line in enumerate(lines, 1):
            self._log.info("[%s] %s", log.label, line)
            if not number % _LINES_AT_ONCE:
                await asyncio.sleep(0)

    def _logs_of(self, found: Mapping[str, Iterable[Process]]) -> list[Log]:
        return [log for name, own in found.items() for process in own for log in self._of(name, process)]

    def _of(self, name: str, process: Process) -> Iterator[Log]:
        program = self._programs[name]
        for path, suffix, backups in (
            (process.stdout_log, "", _backups(program, "stdout")),
            (process.stderr_log, " stderr", _backups(program, "stderr")),
        ):
            if not path or not (process.start or path in self._kept):
                continue
            if (log := self._logs.get(Path(path))) is None:
                label = process.name if process.name == process.group else process.full_name
                place = self._kept.get(path)
                log = Log(label + suffix, Path(path), backups, place, process.start - 1.0, self._is_ours)
                self._logs[log.path] = log
            yield log


def _backups(program: ProgramConfiguration, channel: str) -> int:
    """Return how many rotated files a program's log has at most."""
    size: str = getattr(program, f"{channel}_logfile_maxbytes")
    rotates = int(size.rstrip("KMGBkmgb")) > 0
    backups: int = getattr(program, f"{channel}_logfile_backups")
    return min(backups, _MOST_BACKUPS) if rotates else 0
