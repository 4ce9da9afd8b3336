"""A log whose reader is slow, or absent, blocks nobody and loses no line before its memory is full."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from deferrable_ops.triggers.lifecycle import log_pipe
from deferrable_ops.triggers.lifecycle.log_pipe import LogPipe

LINE = b'{"event": "%05d", "filler": "' + 300 * b"x" + b'"}\n'


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, int]]:
    """The reader's end, and the descriptor that a process writes its log to."""
    reader, writer = socket.socketpair()
    descriptor = writer.detach()
    yield reader, descriptor
    reader.close()
    os.close(descriptor)


def write_all(descriptor: int, count: int) -> None:
    for number in range(count):
        os.write(descriptor, LINE % number)


def read_lines(reader: socket.socket, count: int) -> list[bytes]:
    reader.settimeout(30)
    data = b""
    while data.count(b"\n") < count:
        data += reader.recv(65536)
    return data.splitlines(keepends=True)


def test_lines_are_written_without_a_reader_and_read_later_in_order(
    sockets: tuple[socket.socket, int],
) -> None:
    reader, descriptor = sockets
    LogPipe(descriptor, as_json=True)
    writing = threading.Thread(target=write_all, args=(descriptor, 5_000), daemon=True)
    writing.start()
    writing.join(30)
    assert not writing.is_alive()
    assert read_lines(reader, 5_000) == [LINE % number for number in range(5_000)]


def test_without_a_pipe_the_same_writer_blocks(sockets: tuple[socket.socket, int]) -> None:
    reader, descriptor = sockets
    writing = threading.Thread(target=write_all, args=(descriptor, 5_000), daemon=True)
    writing.start()
    writing.join(0.5)
    assert writing.is_alive()
    read_lines(reader, 5_000)
    writing.join(30)
    assert not writing.is_alive()


def read_kept_and_dropped(reader: socket.socket, count: int) -> tuple[list[int], int]:
    """Read until so many lines have arrived, or were reported as dropped; return both."""
    reader.settimeout(30)
    data, kept, dropped = b"", list[int](), 0
    while len(kept) + dropped < count:
        data += reader.recv(65536)
        *lines, data = data.split(b"\n")
        for line in lines:
            text = json.loads(line)["event"]
            if "lines were dropped" in text:
                dropped += int(text.split()[0].replace(",", ""))
            else:
                kept.append(int(text))
    return kept, dropped


@pytest.mark.parametrize("limit", [{"max_bytes": 400_000}, {"max_lines": 500}], ids=str)
def test_lines_above_a_limit_are_dropped_and_counted(
    sockets: tuple[socket.socket, int], limit: dict[str, int]
) -> None:
    reader, descriptor = sockets
    pipe = LogPipe(descriptor, as_json=True, **limit)
    write_all(descriptor, 5_000)
    kept, dropped = read_kept_and_dropped(reader, 5_000)
    assert dropped > 2_000
    assert kept == sorted(set(kept))
    pipe.flush(1.0)


def test_limit_counts_lines_however_short_they_are(sockets: tuple[socket.socket, int]) -> None:
    reader, descriptor = sockets
    LogPipe(descriptor, as_json=True, max_lines=500)
    for number in range(50_000):
        os.write(descriptor, b'{"event": "%d"}\n' % number)
    kept, dropped = read_kept_and_dropped(reader, 50_000)
    # The sockets before and behind the buffer hold lines as well, but not as many.
    assert dropped > 20_000
    assert kept == sorted(set(kept))


def test_line_above_the_memory_is_dropped_before_it_ends_and_the_next_line_is_kept(
    sockets: tuple[socket.socket, int],
) -> None:
    reader, descriptor = sockets
    LogPipe(descriptor, as_json=True, max_bytes=100_000)
    for _ in range(10):
        os.write(descriptor, 50_000 * b"x")
    assert read_kept_and_dropped(reader, 1) == ([], 1)
    os.write(descriptor, b"the end\n" + LINE % 7)
    assert read_kept_and_dropped(reader, 1) == ([7], 0)


def test_reader_that_has_gone_away_blocks_nobody(sockets: tuple[socket.socket, int]) -> None:
    reader, descriptor = sockets
    LogPipe(descriptor, as_json=False)
    reader.shutdown(socket.SHUT_RDWR)
    writing = threading.Thread(target=write_all, args=(descriptor, 5_000), daemon=True)
    writing.start()
    writing.join(30)
    assert not writing.is_alive()


def test_flush_waits_for_the_lines_but_not_for_a_reader(sockets: tuple[socket.socket, int]) -> None:
    reader, descriptor = sockets
    pipe = LogPipe(descriptor, as_json=True)
    write_all(descriptor, 10)
    pipe.flush(10.0)
    assert len(read_lines(reader, 10)) == 10
    write_all(descriptor, 5_000)
    began = time.monotonic()
    pipe.flush(0.2)
    assert time.monotonic() - began < 10


def test_nothing_is_changed_outside_a_triggerer() -> None:
    before = [os.fstat(descriptor) for descriptor in (1, 2)]
    assert log_pipe.install() == "this process is not a triggerer"
    assert [os.fstat(descriptor) for descriptor in (1, 2)] == before


@pytest.fixture
def installed(sockets: tuple[socket.socket, int], monkeypatch: pytest.MonkeyPatch) -> LogPipe:
    pipe = LogPipe(sockets[1], as_json=True)
    monkeypatch.setattr(log_pipe, "_log_pipes", [pipe])
    return pipe


async def test_unread_lines_leave_less_room(sockets: tuple[socket.socket, int], installed: LogPipe) -> None:
    reader, descriptor = sockets
    assert log_pipe.room() == 256 * 1024
    write_all(descriptor, 100)
    assert 256 * 1024 - 4 * 100 * len(LINE) < log_pipe.room() <= 256 * 1024 - 100 * len(LINE)
    write_all(descriptor, 5_000)
    assert log_pipe.room() == 0
    read_lines(reader, 5_100)
    assert log_pipe.room() == 256 * 1024
    assert installed.written() == 5_100 * len(LINE % 0)


async def test_unread_lines_are_waited_for(sockets: tuple[socket.socket, int], installed: LogPipe) -> None:
    reader, descriptor = sockets
    await asyncio.wait_for(log_pipe.until_read(60), 0.1)
    write_all(descriptor, 5_000)
    waiting = asyncio.create_task(log_pipe.until_read(60))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    reading = threading.Thread(target=read_lines, args=(reader, 5_000), daemon=True)
    reading.start()
    await asyncio.wait_for(waiting, 30)
    await asyncio.to_thread(reading.join)


async def test_later_lines_are_not_waited_for(sockets: tuple[socket.socket, int], installed: LogPipe) -> None:
    reader, descriptor = sockets
    write_all(descriptor, 1_000)
    waiting = asyncio.create_task(log_pipe.until_read(60))
    await asyncio.sleep(0)
    write_all(descriptor, 4_000)
    read_lines(reader, 3_500)
    await asyncio.wait_for(waiting, 30)
    assert installed.unread() > 1_000 * len(LINE % 0)


async def test_absent_reader_is_waited_for_only_a_while(
    sockets: tuple[socket.socket, int], installed: LogPipe
) -> None:
    write_all(sockets[1], 5_000)
    await log_pipe.until_read(0.3)
    assert installed.unread() >= 5_000 * len(LINE % 0)


async def test_without_a_pipe_there_is_no_limit() -> None:
    assert log_pipe.room() > 10**12
    await asyncio.wait_for(log_pipe.until_read(60), 0.1)
