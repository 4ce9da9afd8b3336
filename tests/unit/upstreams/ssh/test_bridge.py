"""Data from the bridge is bounded, even if another program runs on the machine."""

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
    """A fake channel of asyncssh whose other end never confirms that it was closed."""

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
    """Return the writer to a local client, and the client's socket, from which nothing is read."""
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_unix_connection(sock=ours)
    try:
        yield writer, theirs
    finally:
        writer.close()
        theirs.close()


@asynccontextmanager
async def bridged_connection(found: Bridge) -> AsyncIterator[tuple[BridgedConnection, socket.socket]]:
    """Return a connection that the bridge has opened, and the socket of its local client."""
    async with AsyncExitStack() as stack:
        writer, theirs = await stack.enter_async_context(connected())
        opening = asyncio.ensure_future(stack.enter_async_context(found.connect(Path("/s.sock"), writer)))
        while not found._connections:
            await asyncio.sleep(0)
        (number,) = found._connections
        found.data_received(HELLO + HEAD.pack(number, b"o", 0), None)
        bridged = await opening
        assert bridged is not None
        yield bridged, theirs


async def test_frames_are_reassembled_from_any_pieces() -> None:
    found, _ = bridge()
    async with bridged_connection(found) as (bridged, theirs):
        sent = HEAD.pack(bridged.number, b"d", 65_536) + b"x" * 65_536 + HEAD.pack(bridged.number, b"c", 0)
        for start in range(0, len(sent), 7):
            found.data_received(sent[start : start + 7], None)
        assert bridged.closed.is_set()
        theirs.settimeout(5)
        received = 0
        while received < 65_536:
            received += len(await asyncio.to_thread(theirs.recv, 65_536))
        assert (received, len(found._received)) == (65_536, 0)


@pytest.mark.parametrize("size", [1, 5, 32_768])
async def test_output_of_the_shell_before_hello_is_discarded(size: int) -> None:
    found, channel = bridge()
    said = b"welcome\n" * 10_000 + HELLO[:10] + HELLO
    for start in range(0, len(said), size):
        found.data_received(said[start : start + size], None)
        assert len(found._received) < size + len(HELLO)
    assert found._ready.result()
    assert not channel.is_aborted


async def test_endless_output_before_hello_aborts_the_bridge() -> None:
    found, channel = bridge()
    for _ in range(40):
        found.data_received(b"y" * 32_768, None)
        assert len(found._received) <= len(HELLO)
    assert (channel.is_aborted, found.is_closed) == (True, True)
    async with connected() as (writer, _):
        with pytest.raises(MachineUnavailable, match="prints too much"):
            async with found.connect(Path("/s.sock"), writer):
                pass


async def test_oversized_frame_aborts_all_connections() -> None:
    found, channel = bridge()
    async with bridged_connection(found) as (bridged, _):
        found.data_received(HEAD.pack(bridged.number, b"d", 2**32 - 1), None)
        assert (channel.is_aborted, found.is_closed, bridged.closed.is_set()) == (True, True, True)
        for _ in range(40):
            found.data_received(b"y" * 32_768, None)
        assert not found._received


async def test_unread_connection_is_aborted_without_affecting_others() -> None:
    found, channel = bridge()
    frame = b"x" * 65_536
    async with bridged_connection(found) as (unread, _), connected() as (writer, theirs):
        found._connections[99] = other = BridgedConnection(99, writer)
        for _ in range(300):
            found.data_received(HEAD.pack(unread.number, b"d", len(frame)) + frame, None)
            assert unread.writer.transport.get_write_buffer_size() <= 16 * MB
        assert unread.closed.is_set()
        found.data_received(HEAD.pack(99, b"d", 5) + b"hello", None)
        assert await asyncio.to_thread(theirs.recv, 5) == b"hello"
        assert (channel.is_aborted, found.is_closed, other.closed.is_set()) == (False, False, False)


async def test_only_the_end_of_the_error_output_is_kept() -> None:
    found, _ = bridge()
    for _ in range(2000):
        found.data_received(b"x" * 900, 1)
    found.data_received(b"no such program", 1)
    found.exit_signal_received("K" * 5000)
    assert len(found._stderr) == 1000
    assert found.stderr.endswith("KKK ended the program")
