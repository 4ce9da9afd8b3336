"""Copies the output of programs to files beside the log of the task that watches them.

The files stay after supervisord's own files are removed. The output does not pass through the triggerer's log, so the
number of lines needs no limit.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Final
from urllib.parse import quote

from deferrable_ops.inbox import Attempt
from deferrable_ops.supervisord.log_lines import LogBytes, LogPosition
from deferrable_ops.triggers.supervisor.host import SupervisorHost
from deferrable_ops.triggers.supervisor.watch.log_tail import LogContent, LogTail
from deferrable_ops.triggers.supervisor.watch.output_copier import OutputCopier
from deferrable_ops.triggers.supervisor.watch.saved_state import SavedState
from deferrable_ops.upstreams.machine.machine import FileStatus

# The largest number of bytes to copy from one log in one poll. The next polls copy the rest of the output.
_BYTES_PER_POLL: Final = 64 * 1024 * 1024


class FileForwarder(OutputCopier[bytes]):
    """Copies the output of all programs in a configuration to files, unchanged.

    The files are on the triggerer's host, in the directory of the task's log.

    :param attempt: the attempt of the task, which determines the directory and the names of the files.
    """

    read_as: ClassVar[Callable[[LogPosition], LogContent[Any]]] = LogBytes

    def __init__(self, host: SupervisorHost, saved: SavedState, attempt: Attempt) -> None:
        super().__init__(host, saved)
        self._attempt = attempt
        self._files: dict[Path, Path] = {}

    async def copy(self, waiting: list[tuple[LogTail[bytes], FileStatus | None]], *, is_last: bool) -> None:
        """See :meth:`OutputCopier.copy`."""
        for log, status in waiting:
            read = 0
            while is_last or read < _BYTES_PER_POLL:
                start = log.position
                chunk = await log.read(self._machine, status, self._chunk)
                if chunk.has_gap:
                    self.report_gap(log)
                if chunk.parts:
                    try:
                        file = await self._file_of(log)
                        data = b"".join(chunk.parts)
                        await asyncio.to_thread(_append, file, data, log.max_bytes, log.backups)
                    except OSError:
                        log.rewind(start)
                        raise
                read += chunk.size
                if not chunk.has_more:
                    break

    async def _file_of(self, log: LogTail[bytes]) -> Path:
        """Return the file to which a log is copied. Create this file if it is missing."""
        if log.path not in self._files:
            file = await asyncio.to_thread(_create, self._attempt, log.label)
            self._files[log.path] = file
            self._log.info(
                "[%s] The output is copied to the file %s on the triggerer's host %s%s",
                log.label,
                file,
                os.uname().nodename,
                "; remote logging does not upload this file" if _logs_remotely() else "",
            )
        return self._files[log.path]


def _create(attempt: Attempt, label: str) -> Path:
    from airflow.sdk.log import init_log_file
    from airflow.utils.helpers import log_filename_template_renderer

    fields = asdict(attempt)
    if attempt.logical_date is not None:
        fields["logical_date"] = datetime.fromtimestamp(attempt.logical_date, UTC)
    log = Path(log_filename_template_renderer()(ti=SimpleNamespace(**fields)))
    # Airflow shows all files whose names begin with the name of the task's log as parts of this log.
    name = f"output.{log.stem}.{quote(label.replace(' ', '.'), safe='')}.log"
    return init_log_file(str(log.with_name(name)))


def _logs_remotely() -> bool:
    from airflow.sdk.configuration import conf

    return bool(conf.getboolean("logging", "remote_logging", fallback=False))


def _append(file: Path, data: bytes, max_bytes: int, backups: int) -> None:
    """Append all of the data to a file, or nothing. If the file has reached its maximum size, rotate it first, as
    supervisord does with its log files.

    :param max_bytes: the size in bytes at which the file is rotated; 0 if it is never rotated.
    :param backups: the maximum number of rotated files; their names end in ``.1``, ``.2`` and so on.
    :raises OSError: for example if the disk is full.
    """
    if max_bytes and file.exists() and file.stat().st_size >= max_bytes:
        _rotate(file, backups)
    with file.open("ab", buffering=0) as opened:
        size = opened.tell()
        written = 0
        try:
            while written < len(data):
                written += opened.write(data[written:]) or 0
        except OSError as error:
            error.filename = str(file)
            opened.truncate(size)
            raise


def _rotate(file: Path, backups: int) -> None:
    mode = file.stat().st_mode
    files = [file, *(file.with_name(f"{file.name}.{number}") for number in range(1, backups + 1))]
    for newer, older in reversed([*pairwise(files)]):
        if newer.exists():
            newer.replace(older)
    # Without rotated files, this deletes the old output.
    file.write_bytes(b"")
    file.chmod(stat.S_IMODE(mode))
