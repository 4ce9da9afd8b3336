"""A program's output by a byte cursor: each line once, whatever bytes it writes and whenever the reader restarts."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deferrable_ops.supervisord.output import Output

options = pytest.importorskip("supervisor.options")
compat = pytest.importorskip("supervisor.compat")

codecs.register_error("each byte", lambda error: ("\N{REPLACEMENT CHARACTER}", error.start + 1))  # type: ignore[attr-defined]


class Log:
    """A log as supervisord shows it: its own functions read the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.readings = 0

    def size(self) -> int:
        _, size, _ = options.tailFile(str(self.path), 0, 0)
        return int(size)

    def read(self, offset: int, length: int) -> str | None:
        self.readings += 1
        try:
            return str(compat.as_string(options.readFile(str(self.path), offset, length)))
        except UnicodeDecodeError:
            return None


def read_all(output: Output, log: Log, ended: bool = False) -> list[str]:
    lines = []
    while (request := output.request(log.size(), ended)) is not None:
        lines += output.answer(log.read(*request))
    return [*lines, *output.finish()] if ended else lines


def expected_lines(data: bytes) -> list[str]:
    *lines, rest = data.decode(errors="each byte").split("\n")
    return [line.removesuffix("\r") for line in [*lines, *([rest] if rest else [])]]


PIECES = st.one_of(
    st.text(max_size=8).map(str.encode),
    st.binary(max_size=4),
    st.sampled_from([b"\n", b"\r\n", "é€😀".encode(), b"\xff", b"\xe2\x82", b"\x00\x1b[0m", b"line\n"]),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs") / "output.log"


@given(
    writes=st.lists(st.tuples(PIECES, st.booleans()), max_size=20),
    chunk_size=st.sampled_from([1, 2, 3, 7, 64]),
)
@settings(max_examples=300, deadline=None)
def test_each_line_comes_once_whenever_the_reader_is_restarted(
    path: Path, writes: list[tuple[bytes, bool]], chunk_size: int
) -> None:
    path.write_bytes(b"")
    log, output, lines, written = Log(path), Output(chunk_size=chunk_size), list[str](), b""
    for data, restart in writes:
        written += data
        path.write_bytes(written)
        lines += read_all(output, log)
        if restart:
            output = Output(output.cursor, chunk_size)
    lines += read_all(output, log, ended=True)
    assert lines == expected_lines(written)
    assert output.cursor == len(written)
    assert read_all(output, log, ended=True) == []


def test_cursor_stays_before_a_line_that_is_not_complete(path: Path) -> None:
    path.write_bytes("one\ntwö".encode())
    output = Output()
    assert read_all(output, Log(path)) == ["one"]
    assert output.cursor == 4
    path.write_bytes("one\ntwö!\n".encode())
    assert read_all(output, Log(path)) == ["twö!"]
    assert read_all(Output(4), Log(path)) == ["twö!"]


def test_text_takes_one_reading_a_chunk(path: Path) -> None:
    path.write_bytes(b"x" * 99 + b"\n" + b"y" * 99 + b"\n")
    log = Log(path)
    assert len(read_all(Output(chunk_size=100), log)) == 2
    assert log.readings == 2


def test_character_that_a_chunk_would_cut_is_read_whole(path: Path) -> None:
    path.write_bytes("aé😀\n".encode() * 50)
    log = Log(path)
    assert read_all(Output(chunk_size=8), log) == ["aé😀"] * 50
    assert log.readings <= 200


def test_bytes_that_are_no_text_do_not_stop_the_reading(path: Path) -> None:
    path.write_bytes((b"caf\xe9 " * 10 + b"\n") * 20)
    log = Log(path)
    assert read_all(Output(), log, ended=True) == ["caf\N{REPLACEMENT CHARACTER} " * 10] * 20
    assert log.readings < 9000


def test_character_that_is_still_being_written_is_waited_for(path: Path) -> None:
    path.write_bytes("€".encode()[:2])
    output, log = Output(), Log(path)
    assert read_all(output, log) == []
    path.write_bytes("€\n".encode())
    assert read_all(output, log) == ["€"]
    path.write_bytes("€\n".encode() + "€".encode()[:2])
    assert read_all(output, log) == []
    assert read_all(output, log, ended=True) == ["\N{REPLACEMENT CHARACTER}" * 2]


def test_log_that_was_rotated_is_read_from_its_start(path: Path) -> None:
    path.write_bytes(b"one\ntwo\nthr")
    output, log = Output(), Log(path)
    assert read_all(output, log) == ["one", "two"]
    assert not output.shrank(log.size())
    path.write_bytes(b"new\n")
    assert output.shrank(log.size())
    assert read_all(output, log) == ["new"]
    assert output.cursor == 4


def test_line_without_an_end_is_given_out_in_parts(path: Path) -> None:
    path.write_bytes(b"x" * 200_000)
    output, log = Output(), Log(path)
    parts = read_all(output, log, ended=True)
    assert "".join(parts) == "x" * 200_000
    assert max(map(len, parts)) < 2 * 65536 + 1


def test_nothing_new_asks_for_nothing(path: Path) -> None:
    output: Any = Output(10)
    assert output.request(10) is None
    assert output.finish() == []
