"""What a machine sends over the bridge is bounded, whatever runs there in place of our program."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from deferrable_ops.exceptions import MachineUnavailable
from deferrable_ops.upstreams.ssh.bridge import Bridge, BridgedConnection
from deferrable_ops.upstreams.ssh.bridge_remote import HEAD, HELLO

MB = 2**20


class Channel:
    """What asyncssh gives a session; its other end never confirms that it was closed."""

    def __init__(self) -> None:
        self.sent = b""
        self.is_aborted = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def abort(self) -> None:
        self.is_aborted = True


def bridge() -> tuple[Bridge, Channel]:
    found, channel = Bridge(), Channel()
    found.connection_made(channel)
    return found, channel


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamWriter, socket.socket]]:
    """The writer to somebody who connected here, and his end, which he does not read."""
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_unix_connection(sock=ours)
    try:
        yield writer, theirs
    finally:
        writer.close()
        theirs.close()


@asynccontextmanager
async def carrying(found: Bridge) -> AsyncIterator[tuple[BridgedConnection, socket.socket]]:
    """A connection that the bridge has opened."""
    async with AsyncExitStack() as stack:
        writer, theirs = await stack.enter_async_context(connected())
        opening = asyncio.ensure_future(stack.enter_async_context(found.opened(Path("/s.sock"), writer)))
        while not found._carried:
            await asyncio.sleep(0)
        (number,) = found._carried
        found.data_received(HELLO + HEAD.pack(number, b"o", 0), None)
        carried = await opening
        assert carried is not None
        yield carried, theirs


async def test_frames_arrive_in_whatever_pieces() -> None:
    found, _ = bridge()
    async with carrying(found) as (carried, theirs):
        sent = HEAD.pack(carried.number, b"d", 65_536) + b"x" * 65_536 + HEAD.pack(carried.number, b"c", 0)
        for start in range(0, len(sent), 7):
            found.data_received(sent[start : start + 7], None)
        assert carried.over.is_set()
        theirs.settimeout(5)
        received = 0
        while received < 65_536:
            received += len(await asyncio.to_thread(theirs.recv, 65_536))
        assert (received, len(found._waiting)) == (65_536, 0)


@pytest.mark.parametrize("size", [1, 5, 32_768])
async def test_program_is_found_behind_what_a_shell_says(size: int) -> None:
    found, channel = bridge()
    said = b"welcome\n" * 10_000 + HELLO[:10] + HELLO
    for start in range(0, len(said), size):
        found.data_received(said[start : start + size], None)
        assert len(found._waiting) < size + len(HELLO)
    assert found._ready.result()
    assert not channel.is_aborted


async def test_shell_that_does_not_stop_talking_is_broken_off() -> None:
    found, channel = bridge()
    for _ in range(40):
        found.data_received(b"y" * 32_768, None)
        assert len(found._waiting) <= len(HELLO)
    assert (channel.is_aborted, found.is_over) == (True, True)
    async with connected() as (writer, _):
        with pytest.raises(MachineUnavailable, match="does not stop talking"):
            async with found.opened(Path("/s.sock"), writer):
                pass


async def test_frame_that_the_program_never_sends_breaks_off_all_connections() -> None:
    found, channel = bridge()
    async with carrying(found) as (carried, _):
        found.data_received(HEAD.pack(carried.number, b"d", 2**32 - 1), None)
        assert (channel.is_aborted, found.is_over, carried.over.is_set()) == (True, True, True)
        for _ in range(40):
            found.data_received(b"y" * 32_768, None)
        assert not found._waiting


async def test_connection_that_nobody_reads_is_broken_off_alone() -> None:
    found, channel = bridge()
    frame = b"x" * 65_536
    async with carrying(found) as (unread, _), connected() as (writer, theirs):
        found._carried[99] = other = BridgedConnection(99, writer)
        for _ in range(300):
            found.data_received(HEAD.pack(unread.number, b"d", len(frame)) + frame, None)
            assert unread.writer.transport.get_write_buffer_size() <= 16 * MB
        assert unread.over.is_set()
        found.data_received(HEAD.pack(99, b"d", 5) + b"hello", None)
        assert await asyncio.to_thread(theirs.recv, 5) == b"hello"
        assert (channel.is_aborted, found.is_over, other.over.is_set()) == (False, False, False)


async def test_of_what_is_complained_the_last_is_kept() -> None:
    found, _ = bridge()
    for _ in range(2000):
        found.data_received(b"x" * 900, 1)
    found.data_received(b"no such program", 1)
    found.exit_signal_received("K" * 5000)
    assert len(found._said) == 1000
    assert set(found.said) == {"K"}
