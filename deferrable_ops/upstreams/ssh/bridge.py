"""Connects to Unix sockets of a remote machine on which sshd does not forward sockets.

The bridge program ``bridge_remote.py`` runs on the remote machine. The program and the library exchange the data of all
connections over the program's stdin and stdout.
"""

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
# Timeout in seconds for starting the program and opening a socket.
_OPEN_SECONDS: Final = 15.0

# The following limits are in bytes. They are needed because another program than ours may run on the machine.
# The account's shell may print at most this much before HELLO.
_MAX_BEFORE_HELLO: Final = 2**20
# The program reads at most this much from a socket at once.
_MAX_FRAME: Final = 2**16
# The data of one connection that the local client has not read yet may have at most this size. It is enough for the
# largest answer that a client accepts.
_MAX_UNREAD: Final = 2**24
_MAX_STDERR: Final = 1000


@cache
def bridge_program() -> str:
    """Return the source code of ``bridge_remote.py``. Call this function in a thread, because the function reads a
    file, which blocks the event loop.
    """
    return Path(__file__).with_name("bridge_remote.py").read_text()


class BridgedConnection:
    """One connection to a Unix socket of the remote machine, through the bridge program.

    :param writer: the stream that writes data to the local client.
    """

    def __init__(self, number: int, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.writer = writer
        self.opened: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.closed = asyncio.Event()

    def receive(self, letter: bytes, data: bytes) -> None:
        """Handle a frame that the bridge program sent for this connection. The argument `letter` is the type of the
        frame; see ``bridge_remote.py``.
        """
        if letter == _DATA:
            # Do not wait until the client has read the data: this would block all other connections.
            if self.writer.transport.get_write_buffer_size() + len(data) > _MAX_UNREAD:
                self.writer.transport.abort()
                self.closed.set()
            else:
                self.writer.write(data)
            return
        if not self.opened.done():
            self.opened.set_result(letter == _OPEN)
        if letter == _CLOSE:
            self.closed.set()


class Bridge:
    """The bridge program on the remote machine, and the connections whose data this program transfers.

    asyncssh calls :meth:`connection_made`, :meth:`data_received` and the other callbacks of an asyncssh session.
    """

    def __init__(self) -> None:
        self.is_closed = False
        self._stderr = bytearray()
        self._ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._channel: Any = None
        self._numbers = itertools.count(1)
        self._connections: dict[int, BridgedConnection] = {}
        self._received = bytearray()
        self._before_hello = 0
        self._writable = asyncio.Event()
        self._writable.set()

    async def start(self, connection: SSHClientConnection, line: str, first_line: bytes) -> Bridge:
        """Start the bridge program on the remote machine, and return this bridge.

        :param line: the command line that starts the bridge program in the shell of the remote account.
        :param first_line: the line that is written to the command's standard input before all other data.
        """
        await connection.create_session(lambda: self, line, encoding=None)  # type: ignore[arg-type,return-value]
        self._channel.write(first_line)
        return self

    @asynccontextmanager
    async def connect(
        self, path: Path, writer: asyncio.StreamWriter
    ) -> AsyncIterator[BridgedConnection | None]:
        """Connect to a Unix socket of the remote machine, and close this connection at the end of the ``with`` block.

        If no process listens on the socket, yield None.

        :param writer: the stream that writes data to the local client.
        :raises MachineUnavailable: if the bridge program is not running, or does not respond.
        """
        bridged = BridgedConnection(next(self._numbers), writer)
        self._connections[bridged.number] = bridged
        try:
            try:
                async with asyncio.timeout(_OPEN_SECONDS):
                    ready = await asyncio.shield(self._ready)
                    if ready:
                        await self._send(bridged.number, _OPEN, str(path).encode())
                    opened = ready and await bridged.opened
            except TimeoutError:
                ready = False
            if not ready:
                raise MachineUnavailable(
                    f"cannot connect to {path}: sshd does not forward sockets, and python3 on the machine failed "
                    f"({self.stderr}); install python3 there, or set AllowStreamLocalForwarding in sshd_config"
                )
            yield bridged if opened else None
        finally:
            del self._connections[bridged.number]
            self._write(bridged.number, _CLOSE, b"")

    async def transfer(self, bridged: BridgedConnection, reader: asyncio.StreamReader) -> None:
        """Transfer data in both directions until the connection is closed.

        :param reader: the stream that reads data from the local client.
        """
        sending = asyncio.create_task(self._send_all(bridged, reader))
        try:
            await bridged.closed.wait()
        finally:
            sending.cancel()

    @property
    def stderr(self) -> str:
        """The last part of what the bridge program wrote to stderr, for error messages."""
        return self._stderr.decode(errors="replace").strip()[-500:] or "no error output"

    def close(self) -> None:
        """Close the SSH channel. The bridge program ends when its standard input is closed."""
        if self._channel is not None:
            self._channel.close()

    async def _send_all(self, bridged: BridgedConnection, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(65_536):
                await self._send(bridged.number, _DATA, data)
            await self._send(bridged.number, _END, b"")
        except OSError:
            # The local client closed the connection.
            bridged.closed.set()

    async def _send(self, number: int, letter: bytes, data: bytes) -> None:
        await self._writable.wait()
        self._write(number, letter, data)

    def _write(self, number: int, letter: bytes, data: bytes) -> None:
        # An OSError means that the channel is closed. asyncssh then calls connection_lost().
        with suppress(OSError):
            self._channel.write(HEAD.pack(number, letter, len(data)) + data)

    # The callbacks of an asyncssh session.

    def connection_made(self, channel: Any) -> None:
        """Store the SSH channel."""
        self._channel = channel

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Pass each received frame to the connection to which it belongs. Keep data from stderr for error messages."""
        if self.is_closed:
            return
        if datatype is not None:
            self._add_stderr(data)
            return
        self._received += data
        if self._ready.done() or self._find_hello():
            self._dispatch_frames()

    def _find_hello(self) -> bool:
        """Discard all received data before the bytes ``HELLO``. Return whether ``HELLO`` was found."""
        before, hello, rest = self._received.partition(HELLO)
        if hello:
            self._received = rest
            self._ready.set_result(True)
            return True
        kept = len(HELLO) - 1
        self._before_hello += max(0, len(before) - kept)
        self._received = before[-kept:]
        if self._before_hello > _MAX_BEFORE_HELLO:
            self._abort(
                "the login shell of the account prints too much before this library's program runs; remove this output "
                "from the startup files of the shell"
            )
        return False

    def _dispatch_frames(self) -> None:
        while len(self._received) >= HEAD.size:
            number, letter, length = HEAD.unpack_from(self._received)
            if length > _MAX_FRAME:
                self._abort(f"received a frame of {length} bytes, which the program never sends")
                return
            end = HEAD.size + length
            if len(self._received) < end:
                return
            if number in self._connections:
                self._connections[number].receive(letter, bytes(self._received[HEAD.size : end]))
            del self._received[:end]

    def _abort(self, reason: str) -> None:
        """Close the SSH channel at once, because the program on the remote machine is not the bridge program.

        Do not wait until the remote program confirms that the channel is closed.
        """
        self._add_stderr(f"\n{reason}".encode())
        self._received.clear()
        self._channel.abort()
        self.connection_lost(None)

    def _add_stderr(self, data: bytes) -> None:
        self._stderr = (self._stderr + data)[-_MAX_STDERR:]

    def connection_lost(self, _error: Exception | None) -> None:
        """Close all connections that the bridge program transferred, because the program has ended or the SSH
        connection was lost.
        """
        self.is_closed = True
        if not self._ready.done():
            self._ready.set_result(False)
        for bridged in self._connections.values():
            bridged.receive(_CLOSE, b"")

    def pause_writing(self) -> None:
        """Stop sending data to the bridge program until asyncssh calls :meth:`resume_writing`."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Continue to send data to the bridge program."""
        self._writable.set()

    def eof_received(self) -> bool:
        """Return False, so that asyncssh closes the SSH channel, because the bridge program has ended."""
        return False

    def session_started(self) -> None:
        """Do nothing, because the bridge program itself sends ``HELLO`` after its start."""

    def xon_xoff_requested(self, _client_can_do: bool) -> None:
        """Do nothing, because the SSH session has no terminal."""

    def exit_status_received(self, _status: int) -> None:
        """Do nothing, because error messages contain the text from stderr, which explains more than an exit status."""

    def exit_signal_received(self, name: str, *_: Any) -> None:
        """Add the name of the signal that ended the bridge program to the text from stderr, for error messages."""
        self._add_stderr(f"the signal SIG{name} ended the program".encode())
