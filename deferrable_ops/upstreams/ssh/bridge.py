"""Connections to Unix sockets of a machine whose sshd forwards none: one program there carries them all."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deferrable_ops.exceptions import MachineUnavailable
from deferrable_ops.upstreams.ssh.bridge_remote import HEAD, HELLO

if TYPE_CHECKING:
    from asyncssh import SSHClientConnection

_OPEN, _DATA, _END, _CLOSE = b"o", b"d", b"e", b"c"
_SECONDS: Final = 15.0  # to start the program, or to open a socket

# In bytes; whoever has the machine may send anything.
_BEFORE_HELLO: Final = 2**20  # what an account's shell says
_LONGEST_FRAME: Final = 2**16  # what the program reads of a socket at once
_UNREAD: Final = 2**24  # of one connection, when nobody reads it here: more than an answer that is taken
_SAID: Final = 1000


@cache
def bridge_program() -> str:
    """Return what runs on the machine. Reads a file."""
    return Path(__file__).with_name("bridge_remote.py").read_text()


class BridgedConnection:
    """A connection that is carried.

    :param writer: to whoever connected here.
    """

    def __init__(self, number: int, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.writer = writer
        self.opened: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.over = asyncio.Event()

    def take(self, letter: bytes, data: bytes) -> None:
        """Take a frame."""
        if letter == _DATA:
            # It is not waited for here: that would hold up all other connections.
            if self.writer.transport.get_write_buffer_size() + len(data) > _UNREAD:
                self.writer.transport.abort()
                self.over.set()
            else:
                self.writer.write(data)
            return
        if not self.opened.done():
            self.opened.set_result(letter == _OPEN)
        if letter == _CLOSE:
            self.over.set()


class Bridge:
    """The program on the machine, and the connections that it carries. asyncssh tells it what happens."""

    def __init__(self) -> None:
        self.is_over = False
        self._said = bytearray()
        self._ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._channel: Any = None
        self._numbers = itertools.count(1)
        self._carried: dict[int, BridgedConnection] = {}
        self._waiting = bytearray()
        self._before_hello = 0
        self._writable = asyncio.Event()
        self._writable.set()

    async def start(self, connection: SSHClientConnection, line: str, first_line: bytes) -> Bridge:
        """Start the program, and return itself.

        :param line: what the account's shell is told.
        :param first_line: what it reads.
        """
        await connection.create_session(lambda: self, line, encoding=None)  # type: ignore[arg-type,return-value]
        self._channel.write(first_line)
        return self

    @asynccontextmanager
    async def opened(
        self, path: Path, writer: asyncio.StreamWriter
    ) -> AsyncIterator[BridgedConnection | None]:
        """Open a socket, until the block is left; None: it cannot be reached.

        :param writer: to whoever connected here.
        :raises MachineUnavailable: the program does not run, or does not answer.
        """
        carried = BridgedConnection(next(self._numbers), writer)
        self._carried[carried.number] = carried
        try:
            try:
                async with asyncio.timeout(_SECONDS):
                    ready = await asyncio.shield(self._ready)
                    if ready:
                        await self._send(carried.number, _OPEN, str(path).encode())
                    opened = ready and await carried.opened
            except TimeoutError:
                ready = False
            if not ready:
                raise MachineUnavailable(f"no python3 carries the connection to {path}: {self.said}")
            yield carried if opened else None
        finally:
            del self._carried[carried.number]
            self._write(carried.number, _CLOSE, b"")

    async def carry(self, carried: BridgedConnection, reader: asyncio.StreamReader) -> None:
        """Carry a connection until it is over.

        :param reader: what whoever connected here says.
        """
        sending = asyncio.create_task(self._send_all(carried, reader))
        try:
            await carried.over.wait()
        finally:
            sending.cancel()

    @property
    def said(self) -> str:
        """What the program complained of."""
        return self._said.decode(errors="replace").strip()[-500:] or "it says nothing"

    def close(self) -> None:
        """End the program."""
        if self._channel is not None:
            self._channel.close()

    async def _send_all(self, carried: BridgedConnection, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(65_536):
                await self._send(carried.number, _DATA, data)
            await self._send(carried.number, _END, b"")
        except OSError:  # whoever connected here broke it off
            carried.over.set()

    async def _send(self, number: int, letter: bytes, data: bytes) -> None:
        await self._writable.wait()
        self._write(number, letter, data)

    def _write(self, number: int, letter: bytes, data: bytes) -> None:
        with suppress(OSError):  # it has ended, and will tell so
            self._channel.write(HEAD.pack(number, letter, len(data)) + data)

    # What asyncssh tells a session.

    def connection_made(self, channel: Any) -> None:
        """Know the channel."""
        self._channel = channel

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Give each frame to the connection that it is for."""
        if self.is_over:
            return
        if datatype is not None:
            self._say(data)
            return
        self._waiting += data
        if self._ready.done() or self._is_greeted():
            self._take_frames()

    def _is_greeted(self) -> bool:
        """Look for HELLO, and drop what comes before it."""
        before, hello, rest = self._waiting.partition(HELLO)
        if hello:
            self._waiting = rest
            self._ready.set_result(True)
            return True
        kept = len(HELLO) - 1
        self._before_hello += max(0, len(before) - kept)
        self._waiting = before[-kept:]
        if self._before_hello > _BEFORE_HELLO:
            self._break_off("the account's shell does not stop talking before the program runs")
        return False

    def _take_frames(self) -> None:
        while len(self._waiting) >= HEAD.size:
            number, letter, length = HEAD.unpack_from(self._waiting)
            if length > _LONGEST_FRAME:
                self._break_off(f"it sends {length} bytes at once, which the program never does")
                return
            end = HEAD.size + length
            if len(self._waiting) < end:
                return
            if number in self._carried:
                self._carried[number].take(letter, bytes(self._waiting[HEAD.size : end]))
            del self._waiting[:end]

    def _break_off(self, why: str) -> None:
        """End what is not our program. It may never confirm that it is closed."""
        self._say(f"\n{why}".encode())
        self._waiting.clear()
        self._channel.abort()
        self.connection_lost(None)

    def _say(self, data: bytes) -> None:
        self._said = (self._said + data)[-_SAID:]

    def connection_lost(self, _error: Exception | None) -> None:
        """Know that the program has ended, or cannot be reached: so have all connections."""
        self.is_over = True
        if not self._ready.done():
            self._ready.set_result(False)
        for carried in self._carried.values():
            carried.take(_CLOSE, b"")

    def pause_writing(self) -> None:
        """Send nothing more for now."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Send again."""
        self._writable.set()

    def eof_received(self) -> bool:
        """The program has ended: let the channel be closed."""
        return False

    def session_started(self) -> None:
        """Do nothing: its HELLO says that it runs."""

    def xon_xoff_requested(self, _client_can_do: bool) -> None:
        """Do nothing: there is no terminal."""

    def exit_status_received(self, _status: int) -> None:
        """Do nothing: what it said is more."""

    def exit_signal_received(self, name: str, *_: Any) -> None:
        """Say so."""
        self._say(f"it was ended by SIG{name}".encode())
