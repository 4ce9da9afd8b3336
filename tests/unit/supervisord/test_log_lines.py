"""Splitting the bytes of a log into lines, and the position up to which they were emitted."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deferrable_ops.supervisord.log_lines import OVERLAP, LogLines, LogPosition, fingerprint_of

PIECES = st.one_of(
    st.text(max_size=8).map(str.encode),
    st.binary(max_size=4),
    st.sampled_from([b"\n", b"\r\n", "é€😀".encode(), b"\xff", b"\xe2\x82", b"\x00\x1b[0m", b"line\n"]),
)


def read_from(position: LogPosition, data: bytes, sizes: list[int]) -> tuple[LogLines, list[str]]:
    """Read a file from a position, in pieces of the given sizes, and then the rest."""
    lines, found = LogLines(position), list[str]()
    for size in [*sizes, len(data)]:
        start = lines.read_position.offset
        found += lines.add(data[max(0, start - OVERLAP) : start], data[start : start + size], 7.0)
    return lines, found


def expected(data: bytes) -> list[str]:
    *lines, rest = data.split(b"\n")
    whole = [*lines, *([rest] if rest else [])]
    return [line.removesuffix(b"\r").decode(errors="replace") for line in whole]


@given(data=st.lists(PIECES, max_size=40).map(b"".join), sizes=st.lists(st.integers(1, 20), max_size=20))
def test_lines_do_not_depend_on_the_sizes_of_reads(data: bytes, sizes: list[int]) -> None:
    lines, found = read_from(LogPosition(inode=3), data, sizes)
    assert found + lines.finish() == expected(data)
    assert lines.resume_position == LogPosition(3, len(data), fingerprint_of(data), 7.0)


@given(data=st.lists(PIECES, max_size=40).map(b"".join), sizes=st.lists(st.integers(1, 20), max_size=20))
def test_reading_resumes_from_a_saved_position(data: bytes, sizes: list[int]) -> None:
    first, found = LogLines(LogPosition()), list[str]()
    for size in sizes:
        start = first.read_position.offset
        found += first.add(data[max(0, start - OVERLAP) : start], data[start : start + size], 7.0)
    kept = LogPosition.from_json(json.loads(json.dumps(first.resume_position.to_json())))
    assert kept is not None
    assert kept.fingerprint == fingerprint_of(data[: kept.offset])
    second, rest = read_from(kept, data, [])
    assert found + rest + second.finish() == expected(data)


def test_resume_position_stays_before_an_incomplete_line() -> None:
    lines = LogLines(LogPosition())
    assert lines.add(b"", "one\ntwö".encode(), 1.0) == ["one"]
    assert (lines.resume_position.offset, lines.read_position.offset) == (4, 8)
    assert lines.add(b"one\ntw\xc3\xb6", b"!\n", 2.0) == ["twö!"]
    assert (
        lines.resume_position
        == lines.read_position
        == LogPosition(0, 10, fingerprint_of("one\ntwö!\n".encode()), 2.0)
    )


def test_line_may_begin_in_one_file_and_end_in_the_next() -> None:
    lines = LogLines(LogPosition(inode=1))
    assert lines.add(b"", b"one\ntw", 1.0) == ["one"]
    lines.continue_in(LogPosition(inode=2))
    assert (lines.resume_position.inode, lines.resume_position.offset) == (1, 4)
    assert lines.add(b"", b"o\n", 2.0) == ["two"]
    assert (lines.resume_position.inode, lines.resume_position.offset) == (2, 2)
    lines.continue_in(LogPosition(inode=3))
    assert lines.resume_position.inode == 3


@pytest.mark.parametrize("character", ["é", "€", "😀"])
def test_long_line_is_split_between_characters(character: str) -> None:
    data = b"x" + character.encode() * 60_000
    lines, found = LogLines(LogPosition()), list[str]()
    for start in range(0, len(data), 1000):
        found += lines.add(data[max(0, start - OVERLAP) : start], data[start : start + 1000], 1.0)
        assert lines.resume_position.fingerprint == fingerprint_of(data[: lines.resume_position.offset])
    assert len(found) == len(data) // 65536
    assert "".join(found + lines.finish()) == data.decode()


def test_invalid_bytes_are_not_held_back() -> None:
    data = b"\xff" * 200_000
    lines, found = read_from(LogPosition(), data, [65536] * 3)
    assert "".join(found + lines.finish()) == "\N{REPLACEMENT CHARACTER}" * 200_000


def test_fingerprint_distinguishes_the_bytes_before_a_position() -> None:
    assert fingerprint_of(b"") == ""
    assert fingerprint_of(b"a" * OVERLAP) == fingerprint_of(b"b" + b"a" * OVERLAP)
    assert fingerprint_of(b"b" + b"a" * (OVERLAP - 1)) != fingerprint_of(b"a" * OVERLAP)


@pytest.mark.parametrize("wrong", [None, {}, [1, 2], [1, 2, "x", None], ["1", 2, "x", 1.0]])
def test_position_in_an_unknown_format_is_ignored(wrong: object) -> None:
    assert LogPosition.from_json(wrong) is None
