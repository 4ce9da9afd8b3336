"""A program's output, as the bytes of its log: how far it was given out, and the lines that they are.

A log is a file that supervisord writes as the program does, and rotates: it becomes ``output.log.1`` while a program
writes on, and a line may begin in one file and end in the next. So a place in it is told by the file's inode, by the
offset, and by the bytes before it, for where no inode can be asked for, or a file was emptied and has grown again.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Final, Self

OVERLAP: Final = 1024
"""How many bytes before an offset tell that a file is the one that was read."""

_LONGEST_LINE: Final = 65536


@dataclass(frozen=True, slots=True)
class LogPosition:
    """A place in a log: before it, all was given out.

    :param inode: of the file; 0 where it is not known.
    :param offset: in bytes.
    :param mark: of the bytes before it, as :func:`mark_of` makes it.
    :param modified: when the file was last written, as far as that was seen: what was not written after it is older.
    """

    inode: int = 0
    offset: int = 0
    mark: str = ""
    modified: float = 0.0

    def to_json(self) -> list[Any]:
        """Return the place as a JSON array."""
        return [self.inode, self.offset, self.mark, self.modified]

    @classmethod
    def from_json(cls, data: Any) -> Self | None:
        """Return the place that :meth:`to_json` wrote; None where it is none of this version."""
        match data:
            case [int(inode), int(offset), str(mark), int() | float() as modified]:
                return cls(inode, offset, mark, float(modified))
        return None


def fingerprint_of(before: bytes) -> str:
    """Return what tells those bytes from others: the last of them count."""
    return blake2b(before[-OVERLAP:], digest_size=8).hexdigest() if before else ""


class LogLines:
    """Turns the bytes of a log, as they are read, into the lines that they hold.

    :param start: where the reading begins.
    """

    def __init__(self, start: LogPosition) -> None:
        self.resume_position = start
        """The place before the first line that was not given out: what to keep."""
        self.read_position = start
        """The place up to which bytes were read."""
        self._pending = b""

    def continue_in(self, start: LogPosition) -> None:
        """Take the bytes that follow from another file, into which the last line may go on."""
        self.read_position = start
        if not self._pending:
            self.resume_position = start

    def take(self, before: bytes, data: bytes, modified: float) -> list[str]:
        """Return the lines that these bytes make complete, without their ends.

        Bytes that are no UTF-8 become U+FFFD. A line of more than 64 kB comes in parts.

        :param before: the bytes before them in the file, as many of them as OVERLAP at most.
        :param modified: when the file was last written.
        """
        joined = before + data
        self.read_position = _further(self.read_position, len(data), joined, modified)
        *lines, rest = (self._pending + data).split(b"\n")
        if len(rest) >= _LONGEST_LINE:
            whole = len(rest) - min(_begun_character(rest), len(data))
            lines, rest = [*lines, rest[:whole]], rest[whole:]
        self._pending = rest
        if lines or not rest:
            self.resume_position = _further(
                self.read_position, -len(rest), joined[: len(joined) - len(rest)], modified
            )
        return [_text(line) for line in lines]

    def finish(self) -> list[str]:
        """Return what an ended program wrote after its last line's end."""
        rest, self._pending = self._pending, b""
        self.resume_position = self.read_position
        return [_text(rest)] if rest else []


def _further(place: LogPosition, by: int, before: bytes, modified: float) -> LogPosition:
    return replace(place, offset=place.offset + by, mark=fingerprint_of(before), modified=modified)


def _begun_character(data: bytes) -> int:
    """Return how many bytes at the end begin a character that is not whole: 0 to 3."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data[-4:])
    return len(decoder.getstate()[0])


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode(errors="replace")
