"""Reads the new lines in one log of a process. Reading continues after log rotations and after restarts of the
triggerer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deferrable_ops.supervisord.log_lines import OVERLAP, LogLines, LogPosition, fingerprint_of
from deferrable_ops.upstreams.machine.machine import FileStatus, Machine


class LogChunk(NamedTuple):
    """The lines that one read of a log returned.

    :param size: the number of bytes that were read.
    :param has_more: whether the log contains more output, which was not read yet.
    :param has_gap: whether output before ``lines`` may be missing, because a log file was removed or emptied.
    """

    lines: list[str]
    size: int = 0
    has_more: bool = False
    has_gap: bool = False


def regular_file(status: FileStatus | None) -> FileStatus | None:
    """Return the status of a file if it is a regular file. Otherwise return None, because a read from another kind
    of file, such as a pipe, could block.
    """
    return status if status is not None and status.is_regular else None


class LogTail:
    """One log of a process: the file to which supervisord writes now, and the older files from log rotations.

    :param label: a prefix that is put before each line in the task's log.
    :param path: path of the log file to which supervisord writes now. The names of rotated files end in ``.1``, ``.2``
        and so on; the file that ends in ``.1`` is the newest rotated file.
    :param backups: the maximum number of rotated files of this log.
    :param position: the position in the log at which reading begins; None if the log was never read.
    :param since: a time. If `position` is None, reading begins with the oldest file that was modified after `since`.
    :param reports_gaps: whether :meth:`read` reports a gap if the file that contains `position` no longer exists.
    """

    def __init__(
        self,
        label: str,
        path: Path,
        backups: int,
        position: LogPosition | None,
        since: float,
        reports_gaps: bool,
    ) -> None:
        self.label = label
        self.path = path
        self._files = (path, *(path.with_name(f"{path.name}.{number}") for number in range(1, backups + 1)))
        self._lines = LogLines(position or LogPosition(modified=since))
        # Whether this process has found the file to which the position belongs.
        self._is_identified = False
        self._was_searched = False
        self._reports_gaps = reports_gaps and position is not None

    @property
    def position(self) -> LogPosition:
        """The position in the log at which reading must continue after a restart of the triggerer. An incomplete last
        line is then read again.
        """
        return self._lines.resume_position

    def may_have_output(self, status: FileStatus | None) -> bool:
        """Return whether the log may contain lines that were not read yet.

        :param status: status of the log file to which supervisord writes now; None if this file does not exist.
        """
        if not self._was_searched:
            return True
        if status is None or status.size == self._lines.read_position.offset == 0:
            return self._is_identified and status is None
        return not self._is_current(status) or status.size > self._lines.read_position.offset

    async def read(self, machine: Machine, status: FileStatus | None, length: int) -> LogChunk:
        """Read the next lines of the log, and return them.

        :param status: status of the log file to which supervisord writes now; None if this file does not exist.
        :param length: maximum number of bytes to read.
        """
        if status is not None and self._is_current(status):
            found = await self._read_in(machine, self.path, status, length)
            if found is not None:
                return found
        return await self._search(machine, length)

    def finish(self) -> list[str]:
        """Return the last line of the log if this line does not end with a newline. Call this method after the program
        has ended.
        """
        return self._lines.finish()

    def _is_current(self, status: FileStatus) -> bool:
        """Return whether the read position is probably in the log file with the given status."""
        at = self._lines.read_position
        if not self._is_identified or status.size < at.offset:
            return False
        return status.inode == at.inode if status.inode and at.inode else at.offset > 0

    async def _search(self, machine: Machine, length: int) -> LogChunk:
        """Find the log file that contains the read position, and read this file from that position.

        If this file was already read to its end, read the next newer log file.
        """
        files = [regular_file(status) for status in await machine.status(*self._files, inodes=True)]
        self._was_searched = True
        lines, has_gap = list[str](), False
        index = await self._find_index(machine, files)
        if index is None:
            index = self._first_unread(files)
            if index is None:
                return LogChunk([])
            lines, has_gap = self._lines.finish(), self._has_gap()
            self._continue_in(files[index])
        elif index and self._is_at_end_of(files[index]):
            index -= 1
            self._continue_in(files[index])
        self._is_identified = True
        status = files[index]
        found = None if status is None else await self._read_in(machine, self._files[index], status, length)
        if found is None:
            # The log was rotated during the search.
            return LogChunk(lines, has_gap=has_gap)
        return LogChunk(lines + found.lines, found.size, index > 0 or found.has_more, has_gap)

    async def _find_index(self, machine: Machine, files: Sequence[FileStatus | None]) -> int | None:
        at = self._lines.read_position
        if not at.inode and not at.offset:
            return 0 if self._is_identified and files[0] is not None else None
        for index, status in enumerate(files):
            if status is None or status.size < at.offset or 0 != status.inode != at.inode != 0:
                continue
            if await self._read_around(machine, self._files[index], 0) is not None:
                return index
        return None

    def _first_unread(self, files: Sequence[FileStatus | None]) -> int | None:
        since = self._lines.read_position.modified
        unread = [
            index for index, status in enumerate(files) if status is not None and status.modified > since
        ]
        return max(unread, default=None)

    def _has_gap(self) -> bool:
        at = self._lines.read_position
        return bool(at.inode or at.offset) and (self._is_identified or self._reports_gaps)

    def _is_at_end_of(self, status: FileStatus | None) -> bool:
        return status is not None and self._lines.read_position.offset >= status.size

    def _continue_in(self, status: FileStatus | None) -> None:
        if status is not None:
            self._lines.continue_in(LogPosition(status.inode, 0, "", status.modified))

    async def _read_in(
        self, machine: Machine, path: Path, status: FileStatus, length: int
    ) -> LogChunk | None:
        """Read a log file from the read position. Return None if the read position is in another file."""
        found = await self._read_around(machine, path, length)
        if found is None:
            return None
        before, data = found
        lines = self._lines.add(before, data, status.modified)
        return LogChunk(lines, len(data), self._lines.read_position.offset < status.size)

    async def _read_around(self, machine: Machine, path: Path, length: int) -> tuple[bytes, bytes] | None:
        """Return the bytes before the read position and the bytes after it. Return None if the bytes before
        the read position have changed.
        """
        at = self._lines.read_position
        overlap = min(at.offset, OVERLAP)
        found = await machine.read(path, at.offset - overlap, overlap + length)
        if found is None or len(found) < overlap or fingerprint_of(found[:overlap]) != at.fingerprint:
            return None
        # At offset 0, there are no bytes to compare, so compare the inode. The log may have been rotated during the
        # read.
        if not overlap and at.inode:
            status = regular_file((await machine.status(path, inodes=True))[0])
            if status is None or status.inode not in (0, at.inode):
                return None
        return found[:overlap], found[overlap:]
