"""One log of a process, read on through its rotations and through restarts of whoever reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deferrable_ops.supervisord.log_lines import OVERLAP, LogLines, LogPosition, fingerprint_of
from deferrable_ops.upstreams.machine.machine import FileStatus, Machine


class Read(NamedTuple):
    """What one reading found.

    :param size: in bytes.
    :param goes_on: there was more when it was read.
    :param is_gapped: before these lines there may have been others, in a file that is gone.
    """

    lines: list[str]
    size: int = 0
    goes_on: bool = False
    is_gapped: bool = False


def regular(status: FileStatus | None) -> FileStatus | None:
    """Return a file's status; None where something else stands, as a pipe that nobody may wait for."""
    return status if status is not None and status.is_regular else None


class Log:
    """One log of a process: the file that supervisord writes, and those that it made of it when it rotated.

    :param label: of its lines.
    :param path: of that file; the others end in ``.1``, which is the newest of them, ``.2`` and so on.
    :param backups: how many of them are kept.
    :param place: up to where the log was given out; None: it never was.
    :param since: a log that never was given out begins with the first file that was written after this moment.
    :param is_missed: it is worth telling when the file of that place is gone.
    """

    def __init__(
        self, label: str, path: Path, backups: int, place: LogPosition | None, since: float, is_missed: bool
    ) -> None:
        self.label = label
        self.path = path
        self._files = (path, *(path.with_name(f"{path.name}.{number}") for number in range(1, backups + 1)))
        self._lines = LogLines(place or LogPosition(modified=since))
        self._is_known = False  # which file it is, in this process
        self._was_looked_for = False
        self._is_missed = is_missed and place is not None

    @property
    def place(self) -> LogPosition:
        """The place to keep: a line that is not complete comes after it."""
        return self._lines.resume_position

    def has_news(self, now: FileStatus | None) -> bool:
        """Return whether there may be something to read.

        :param now: of the file that supervisord writes.
        """
        if not self._was_looked_for:
            return True
        if now is None or now.size == self._lines.read_position.offset == 0:
            return self._is_known and now is None
        return not self._is_current(now) or now.size > self._lines.read_position.offset

    async def read(self, machine: Machine, now: FileStatus | None, length: int) -> Read:
        """Read on.

        :param now: of the file that supervisord writes.
        :param length: bytes, at most.
        """
        if now is not None and self._is_current(now):
            found = await self._read_in(machine, self.path, now, length)
            if found is not None:
                return found
        return await self._look_for(machine, length)

    def finish(self) -> list[str]:
        """Return what an ended program wrote after its last line's end."""
        return self._lines.finish()

    def _is_current(self, now: FileStatus) -> bool:
        """Return whether this is the file that is read, as far as its status tells."""
        at = self._lines.read_position
        if not self._is_known or now.size < at.offset:
            return False
        return now.inode == at.inode if now.inode and at.inode else at.offset > 0

    async def _look_for(self, machine: Machine, length: int) -> Read:
        """Find the file among all of the log's, and read on in it; or in the next one, where it was read to its end."""
        files = [regular(status) for status in await machine.status(*self._files, inodes=True)]
        self._was_looked_for = True
        lines, is_gapped = list[str](), False
        index = await self._index(machine, files)
        if index is None:
            index = self._first_unread(files)
            if index is None:
                return Read([])
            lines, is_gapped = self._lines.finish(), self._misses_a_file()
            self._go_on_in(files[index])
        elif index and self._is_at_end_of(files[index]):
            index -= 1
            self._go_on_in(files[index])
        self._is_known = True
        status = files[index]
        found = None if status is None else await self._read_in(machine, self._files[index], status, length)
        if found is None:  # rotated while it was looked at
            return Read(lines, is_gapped=is_gapped)
        return Read(lines + found.lines, found.size, index > 0 or found.goes_on, is_gapped)

    async def _index(self, machine: Machine, files: Sequence[FileStatus | None]) -> int | None:
        at = self._lines.read_position
        if not at.inode and not at.offset:
            return 0 if self._is_known and files[0] is not None else None
        for index, status in enumerate(files):
            if status is None or status.size < at.offset or 0 != status.inode != at.inode != 0:
                continue
            if await self._bytes(machine, self._files[index], 0) is not None:
                return index
        return None

    def _first_unread(self, files: Sequence[FileStatus | None]) -> int | None:
        since = self._lines.read_position.modified
        unread = [
            index for index, status in enumerate(files) if status is not None and status.modified > since
        ]
        return max(unread, default=None)

    def _misses_a_file(self) -> bool:
        at = self._lines.read_position
        return bool(at.inode or at.offset) and (self._is_known or self._is_missed)

    def _is_at_end_of(self, status: FileStatus | None) -> bool:
        return status is not None and self._lines.read_position.offset >= status.size

    def _go_on_in(self, status: FileStatus | None) -> None:
        if status is not None:
            self._lines.continue_in(LogPosition(status.inode, 0, "", status.modified))

    async def _read_in(self, machine: Machine, path: Path, status: FileStatus, length: int) -> Read | None:
        """Read on in this file; None where it is not the one, whatever its status said."""
        found = await self._bytes(machine, path, length)
        if found is None:
            return None
        before, data = found
        lines = self._lines.add(before, data, status.modified)
        return Read(lines, len(data), self._lines.read_position.offset < status.size)

    async def _bytes(self, machine: Machine, path: Path, length: int) -> tuple[bytes, bytes] | None:
        """Return the bytes before the place and those after it; None where those before it are others."""
        at = self._lines.read_position
        overlap = min(at.offset, OVERLAP)
        found = await machine.read(path, at.offset - overlap, overlap + length)
        if found is None or len(found) < overlap or fingerprint_of(found[:overlap]) != at.fingerprint:
            return None
        if not overlap and at.inode:  # there are no bytes that tell whether it was rotated while it was read
            status = regular((await machine.status(path, inodes=True))[0])
            if status is None or status.inode not in (0, at.inode):
                return None
        return found[:overlap], found[overlap:]
