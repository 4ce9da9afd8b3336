"""Reads the new output in one log of a process. Reading continues after log rotations and after restarts of the
triggerer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from deferrable_ops.exceptions import MachineUnavailable
from deferrable_ops.supervisord.log_lines import OVERLAP, LogPosition, fingerprint_of
from deferrable_ops.upstreams.machine.machine import FileStatus, Machine

T = TypeVar("T")

# Counts the line ends in a part of a file. The arguments are the file, the number of its first byte, starting at 1,
# and the number of bytes.
_COUNT_LINES: Final = 'tail -c "+$2" < "$1" | head -c "$3" | wc -l'
_COUNT_SECONDS: Final = 60.0


class LogContent(Protocol[T]):
    """Converts the bytes of a log to the form in which they are returned. The implementations are LogLines and
    LogBytes.
    """

    read_position: LogPosition
    resume_position: LogPosition

    def continue_in(self, start: LogPosition) -> None: ...
    def skip_to(self, position: LogPosition, *, in_line: bool) -> None: ...
    def add(self, before: bytes, data: bytes, modified: float) -> list[T]: ...
    def finish(self) -> list[T]: ...


class SkippedOutput(NamedTuple):
    """The amount of output that was skipped.

    :param lines: the number of lines; None if the lines could not be counted.
    :param size: the number of bytes.
    """

    lines: int | None
    size: int


class LogChunk(NamedTuple, Generic[T]):
    """The output that one read of a log returned.

    :param parts: the lines, or the bytes in one part.
    :param size: the number of bytes that were read.
    :param has_more: whether the log contains more output, which was not read yet.
    :param has_gap: whether output before ``parts`` may be missing, because a log file was removed or emptied.
    """

    parts: list[T]
    size: int = 0
    has_more: bool = False
    has_gap: bool = False


def regular_file(status: FileStatus | None) -> FileStatus | None:
    """Return the status of a file if it is a regular file. Otherwise return None, because a read from another kind
    of file, such as a pipe, could block.
    """
    return status if status is not None and status.is_regular else None


class LogTail(Generic[T]):
    """One log of a process: the file to which supervisord writes now, and the older files from log rotations.

    :param label: a prefix that is put before each line in the task's log.
    :param path: path of the log file to which supervisord writes now. The names of rotated files end in ``.1``, ``.2``
        and so on; the file that ends in ``.1`` is the newest rotated file.
    :param max_bytes: the size in bytes at which supervisord rotates the log; 0 if the log is not rotated.
    :param backups: the maximum number of rotated files of this log.
    :param read_as: LogLines or LogBytes.
    :param position: the position in the log at which reading begins; None if the log was never read.
    :param since: a time. If `position` is None, reading begins with the oldest file that was modified after `since`.
    :param reports_gaps: whether :meth:`read` reports a gap if the file that contains `position` no longer exists.
    """

    def __init__(
        self,
        label: str,
        path: Path,
        max_bytes: int,
        backups: int,
        read_as: Callable[[LogPosition], LogContent[T]],
        position: LogPosition | None,
        since: float,
        reports_gaps: bool,
    ) -> None:
        self.label = label
        self.path = path
        self.max_bytes = max_bytes
        self.backups = backups
        self._files = (path, *(path.with_name(f"{path.name}.{number}") for number in range(1, backups + 1)))
        self._read_as = read_as
        self._content = read_as(position or LogPosition(modified=since))
        # Whether this process has found the file to which the position belongs.
        self._is_identified = False
        self._was_searched = False
        self._reports_gaps = reports_gaps and position is not None

    @property
    def position(self) -> LogPosition:
        """The position in the log at which reading must continue after a restart of the triggerer. An incomplete last
        line is then read again.
        """
        return self._content.resume_position

    def may_have_output(self, status: FileStatus | None) -> bool:
        """Return whether the log may contain lines that were not read yet.

        :param status: status of the log file to which supervisord writes now; None if this file does not exist.
        """
        if not self._was_searched:
            return True
        if status is None or status.size == self._content.read_position.offset == 0:
            return self._is_identified and status is None
        return not self._is_current(status) or status.size > self._content.read_position.offset

    def unread(self, status: FileStatus | None) -> int:
        """Return about how many bytes of the log were not read yet. The rotated files are not counted.

        :param status: status of the log file to which supervisord writes now; None if this file does not exist.
        """
        if status is None:
            return 0
        return status.size - (self._content.read_position.offset if self._is_current(status) else 0)

    async def skip(self, machine: Machine, left: int) -> SkippedOutput:
        """Skip output that was not read yet, except about the last `left` bytes. The skipped output is not transferred.
        Call this method only after :meth:`read`.
        """
        files = [regular_file(status) for status in await machine.status(*self._files, inodes=True)]
        oldest = await self._find_index(machine, files)
        if oldest is None:
            # The log was rotated during the search, or it was emptied. The next read handles both.
            return SkippedOutput(0, 0)
        at = self._content.read_position.offset
        unread = [0 if status is None else status.size for status in files[: oldest + 1]]
        unread[oldest] -= at
        to_skip = max(0, sum(unread) - left)
        total, counts, in_line = to_skip, list[int | None](), False
        for index in range(oldest, -1, -1):
            start, size = (at if index == oldest else 0), min(unread[index], to_skip)
            if not size:
                break
            counted = await _count_lines(machine, self._files[index], start, size)
            overlap = min(start + size, OVERLAP)
            before = await machine.read(self._files[index], start + size - overlap, overlap)
            status = files[index]
            if status is None or before is None or len(before) < overlap:
                # The log was rotated in the meantime.
                break
            position = LogPosition(status.inode, start + size, fingerprint_of(before), status.modified)
            in_line = not before.endswith(b"\n")
            self._content.skip_to(position, in_line=in_line)
            counts.append(counted)
            to_skip -= size
        known = [count for count in counts if count is not None]
        lines = sum(known) + in_line if len(known) == len(counts) else None
        return SkippedOutput(lines, total - to_skip)

    async def read(self, machine: Machine, status: FileStatus | None, length: int) -> LogChunk[T]:
        """Read the next output of the log, and return it.

        :param status: status of the log file to which supervisord writes now; None if this file does not exist.
        :param length: maximum number of bytes to read.
        """
        if status is not None and self._is_current(status):
            found = await self._read_in(machine, self.path, status, length)
            if found is not None:
                return found
        return await self._search(machine, length)

    def rewind(self, position: LogPosition) -> None:
        """Continue at an earlier position, because the output after this position could not be copied."""
        self._content = self._read_as(position)

    def finish(self) -> list[T]:
        """Return the last line of the log if this line does not end with a newline. Call this method after the program
        has ended.
        """
        return self._content.finish()

    def _is_current(self, status: FileStatus) -> bool:
        """Return whether the read position is probably in the log file with the given status."""
        at = self._content.read_position
        if not self._is_identified or status.size < at.offset:
            return False
        return status.inode == at.inode if status.inode and at.inode else at.offset > 0

    async def _search(self, machine: Machine, length: int) -> LogChunk[T]:
        """Find the log file that contains the read position, and read this file from that position.

        If this file was already read to its end, read the next newer log file.
        """
        files = [regular_file(status) for status in await machine.status(*self._files, inodes=True)]
        self._was_searched = True
        parts, has_gap = list[T](), False
        index = await self._find_index(machine, files)
        if index is None:
            index = self._first_unread(files)
            if index is None:
                return LogChunk([])
            parts, has_gap = self._content.finish(), self._has_gap()
            self._continue_in(files[index])
        elif index and self._is_at_end_of(files[index]):
            index -= 1
            self._continue_in(files[index])
        self._is_identified = True
        status = files[index]
        found = None if status is None else await self._read_in(machine, self._files[index], status, length)
        if found is None:
            # The log was rotated during the search.
            return LogChunk(parts, has_gap=has_gap)
        return LogChunk(parts + found.parts, found.size, index > 0 or found.has_more, has_gap)

    async def _find_index(self, machine: Machine, files: Sequence[FileStatus | None]) -> int | None:
        at = self._content.read_position
        if not at.inode and not at.offset:
            return 0 if self._is_identified and files[0] is not None else None
        for index, status in enumerate(files):
            if status is None or status.size < at.offset or 0 != status.inode != at.inode != 0:
                continue
            if await self._read_around(machine, self._files[index], 0) is not None:
                return index
        return None

    def _first_unread(self, files: Sequence[FileStatus | None]) -> int | None:
        since = self._content.read_position.modified
        unread = [
            index for index, status in enumerate(files) if status is not None and status.modified > since
        ]
        return max(unread, default=None)

    def _has_gap(self) -> bool:
        at = self._content.read_position
        return bool(at.inode or at.offset) and (self._is_identified or self._reports_gaps)

    def _is_at_end_of(self, status: FileStatus | None) -> bool:
        return status is not None and self._content.read_position.offset >= status.size

    def _continue_in(self, status: FileStatus | None) -> None:
        if status is not None:
            self._content.continue_in(LogPosition(status.inode, 0, "", status.modified))

    async def _read_in(
        self, machine: Machine, path: Path, status: FileStatus, length: int
    ) -> LogChunk[T] | None:
        """Read a log file from the read position. Return None if the read position is in another file."""
        found = await self._read_around(machine, path, length)
        if found is None:
            return None
        before, data = found
        parts = self._content.add(before, data, status.modified)
        return LogChunk(parts, len(data), self._content.read_position.offset < status.size)

    async def _read_around(self, machine: Machine, path: Path, length: int) -> tuple[bytes, bytes] | None:
        """Return the bytes before the read position and the bytes after it. Return None if the bytes before
        the read position have changed.
        """
        at = self._content.read_position
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


async def _count_lines(machine: Machine, path: Path, start: int, size: int) -> int | None:
    """Return the number of line ends in a part of a file; None if the machine cannot count line ends."""
    arguments = ["sh", "-c", _COUNT_LINES, "sh", str(path), str(start + 1), str(size)]
    try:
        result = await machine.run(arguments, timeout=_COUNT_SECONDS)
    except MachineUnavailable:
        return None
    return int(result.output) if result.output.strip().isdigit() else None
