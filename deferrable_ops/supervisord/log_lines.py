"""Splits the bytes of a program's log into lines, or returns them unchanged. Keeps the position in the log, so that
reading can continue there later.

supervisord rotates a log while the program writes to it: the file ``output.log`` is renamed to ``output.log.1``, and a
line may start in this file and end in the new ``output.log``. Therefore a position in a log consists of the file's
inode, the offset, and a fingerprint (hash) of the bytes before the offset. The fingerprint is needed on machines that
report no inode, and for files that were truncated and then grew again.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Final, Self

OVERLAP: Final = 1024
"""A fingerprint is computed from up to this number of bytes before the offset."""

_LONGEST_LINE: Final = 65536


@dataclass(frozen=True, slots=True)
class LogPosition:
    """A position in a program's log. The lines before this position were already returned to a caller.

    :param inode: inode of the log file; 0 if the inode is unknown.
    :param offset: number of bytes before this position in the log file.
    :param fingerprint: hash of the bytes before the offset, from :func:`fingerprint_of`.
    :param modified: modification time of the log file when it was last read. Rotated files that were not modified after
        this time contain no unread lines.
    """

    inode: int = 0
    offset: int = 0
    fingerprint: str = ""
    modified: float = 0.0

    def to_json(self) -> list[Any]:
        """Return the log position as a JSON array."""
        return [self.inode, self.offset, self.fingerprint, self.modified]

    @classmethod
    def from_json(cls, data: Any) -> Self | None:
        """Return the log position from the JSON array that :meth:`to_json` returned.

        If the data has another format, return None.
        """
        match data:
            case [int(inode), int(offset), str(fingerprint), int() | float() as modified]:
                return cls(inode, offset, fingerprint, float(modified))
        return None


def fingerprint_of(before: bytes) -> str:
    """Return a hash of the last ``OVERLAP`` bytes of `before`; "" if `before` is empty."""
    return blake2b(before[-OVERLAP:], digest_size=8).hexdigest() if before else ""


class LogLines:
    """Splits the bytes of a log into lines. The bytes can be added in several parts.

    :param start: the position in the log at which reading begins.
    """

    def __init__(self, start: LogPosition) -> None:
        self.resume_position = start
        """The position to save. This is the end of the last line that was returned."""
        self.read_position = start
        """The position up to which the log was read."""
        self._pending = b""
        # The beginning of the next line was skipped.
        self._in_line = False

    def continue_in(self, start: LogPosition) -> None:
        """Continue with another log file, for example after a log rotation. The new file may begin with the rest of the
        last incomplete line.
        """
        self.read_position = start
        if not self._pending:
            self.resume_position = start

    def skip_to(self, position: LogPosition, *, in_line: bool) -> None:
        """Continue at a later position in the log.

        :param in_line: whether the position is inside a line. The rest of this line is then skipped too.
        """
        self.read_position = self.resume_position = position
        self._pending, self._in_line = b"", in_line

    def add(self, before: bytes, data: bytes, modified: float) -> list[str]:
        """Add the next bytes of the log, and return the lines that are now complete, without line ends.

        Bytes that are not valid UTF-8 are replaced by U+FFFD. A line of more than 64 kB is returned in parts.

        :param before: up to ``OVERLAP`` bytes that stand before `data` in the log file.
        :param modified: modification time of the log file.
        """
        joined = before + data
        self.read_position = _advance(self.read_position, len(data), joined, modified)
        *lines, rest = (self._pending + data).split(b"\n")
        if self._in_line and lines:
            del lines[0]
        self._in_line = False
        if len(rest) >= _LONGEST_LINE:
            whole = len(rest) - min(_incomplete_character(rest), len(data))
            lines, rest = [*lines, rest[:whole]], rest[whole:]
        self._pending = rest
        if lines or not rest:
            self.resume_position = _advance(
                self.read_position, -len(rest), joined[: len(joined) - len(rest)], modified
            )
        return [_text(line) for line in lines]

    def finish(self) -> list[str]:
        """Return the last line of a program that has ended, if this line does not end with a newline.

        If the last line ends with a newline, return an empty list.
        """
        rest, self._pending = self._pending, b""
        self.resume_position = self.read_position
        return [_text(rest)] if rest else []


class LogBytes:
    """Returns the bytes of a log unchanged.

    :param start: the position in the log at which reading begins.
    """

    def __init__(self, start: LogPosition) -> None:
        self.resume_position = self.read_position = start

    def continue_in(self, start: LogPosition) -> None:
        """Continue with another log file, for example after a log rotation."""
        self.resume_position = self.read_position = start

    def skip_to(self, position: LogPosition, *, in_line: bool) -> None:
        """Continue at a later position in the log."""
        self.resume_position = self.read_position = position

    def add(self, before: bytes, data: bytes, modified: float) -> list[bytes]:
        """Add the next bytes of the log, and return them in a list.

        :param before: up to ``OVERLAP`` bytes that stand before `data` in the log file.
        :param modified: modification time of the log file.
        """
        self.read_position = _advance(self.read_position, len(data), before + data, modified)
        self.resume_position = self.read_position
        return [data] if data else []

    def finish(self) -> list[bytes]:
        """Return an empty list, because :meth:`add` has already returned all bytes."""
        return []


def _advance(position: LogPosition, by: int, before: bytes, modified: float) -> LogPosition:
    return replace(
        position, offset=position.offset + by, fingerprint=fingerprint_of(before), modified=modified
    )


def _incomplete_character(data: bytes) -> int:
    """Return how many bytes at the end of `data`, 0 to 3, are an incomplete UTF-8 character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data[-4:])
    return len(decoder.getstate()[0])


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode(errors="replace")
