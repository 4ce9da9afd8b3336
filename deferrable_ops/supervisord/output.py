"""Reading a program's output by a byte cursor, through what supervisord's XML-RPC can say of a file.

supervisord reads any bytes of a log (``readProcessStdoutLog``), but fails where they are no UTF-8 text: because they
begin or end within a character, or because the program wrote other bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_LONGEST_CHARACTER: Final = 4
_LONGEST_LINE: Final = 65536
_SHORTEST_READING: Final = 64
# As Python's surrogateescape writes a byte that is no text: it counts as the one byte that it was.
_NO_TEXT: Final = "\udcff"
_SURROGATES: Final = re.compile("[\udc80-\udcff]")


class Output:
    """One output of a process, from a cursor on. It says what to read and is told the answers; it reads nothing itself.

    :param cursor: bytes of the log that were given out already. Whoever goes on from a kept cursor gets each line once.
    :param chunk_size: bytes to read at once, at most.
    """

    def __init__(self, cursor: int = 0, chunk_size: int = 65536) -> None:
        self._chunk_size = chunk_size
        self._length = chunk_size
        self._lengths: Iterator[int] | None = None
        self._position = cursor
        self._pending = ""

    @property
    def cursor(self) -> int:
        """Bytes of the log before the first line that was not given out: what to keep."""
        return self._position - len(self._pending.encode(errors="surrogateescape"))

    def shrank(self, size: int) -> bool:
        """Return whether the log is shorter than what was read: it was rotated or cleared, and begins anew."""
        if size >= self._position:
            return False
        self._position, self._pending, self._lengths = 0, "", None
        return True

    def request(self, size: int, ended: bool = False) -> tuple[int, int] | None:
        """Return the offset and the length to read next, in bytes; None: there is nothing new.

        Up to three bytes that are no text are left for later, because they may be a character that is being written.

        :param size: of the log now, as the second value of ``tailProcessStdoutLog(name, 0, 0)``.
        :param ended: the program has ended, so that nothing is left for later.
        """
        while size > self._position:
            if self._lengths is None:
                self._lengths = _lengths(min(self._length, size - self._position))
            length = next(self._lengths, None)
            if length is not None:
                return self._position, length
            self._lengths = None
            if size - self._position < _LONGEST_CHARACTER and not ended:
                return None
            self._pending += _NO_TEXT
            self._position += 1
        return None

    def answer(self, text: str | None) -> list[str]:
        """Return the lines that are complete now, without their ends.

        :param text: what was read; None: supervisord could not read it.
        """
        if text is None:
            return []
        read = len(text.encode())
        self._lengths = None
        self._length = min(self._chunk_size, max(_SHORTEST_READING, 2 * read))
        self._position += read
        *lines, self._pending = (self._pending + text).split("\n")
        if len(self._pending) >= _LONGEST_LINE:
            lines, self._pending = [*lines, self._pending], ""
        return [_line(line) for line in lines]

    def finish(self) -> list[str]:
        """Return what an ended program wrote after its last line's end, once ``request`` has nothing more."""
        rest, self._pending = self._pending, ""
        return [_line(rest)] if rest else []


def _lengths(longest: int) -> Iterator[int]:
    """Return the lengths to try: one that ends at a character's end is among each four that follow each other."""
    tried: set[int] = set()
    length = longest
    while length:
        for wider in range(length, length + _LONGEST_CHARACTER):
            if wider not in tried:
                tried.add(wider)
                yield wider
        length //= 2


def _line(text: str) -> str:
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text.removesuffix("\r"))
