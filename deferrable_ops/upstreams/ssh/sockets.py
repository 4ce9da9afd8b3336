"""Local Unix sockets. The library forwards connections from these sockets to Unix sockets on a remote machine.

Only the user of this process can open the local sockets.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deferrable_ops.exceptions import ConfigurationError, DeferrableOpsError
from deferrable_ops.upstreams.ssh.bridge import Bridge
from deferrable_ops.upstreams.ssh.link import Link

if TYPE_CHECKING:
    from asyncssh import SSHClientConnection, SSHReader, SSHWriter

log = logging.getLogger(__name__)

_PREFIX: Final = "deferrable-ops-ssh-"
# Limit in bytes. The kernel limits the path of a socket to 107 bytes.
_MAX_SOCKET_PATH: Final = 100


class Sockets:
    """The local Unix sockets that lead to one remote machine. The sockets stay open until the ``with`` block of the
    machine ends.

    :param start_bridge: a function that starts the bridge program. This program transfers the data if sshd does not
        forward sockets.
    :param exists: a function that returns whether a file exists at a path on the machine.
    """

    def __init__(
        self,
        link: Link,
        start_bridge: Callable[[], Awaitable[Bridge]],
        exists: Callable[[Path], Awaitable[bool]],
    ) -> None:
        self._link = link
        self._start_bridge = start_bridge
        self._exists = exists
        self._directory: asyncio.Task[SocketDirectory] | None = None
        self._servers: dict[Path, asyncio.Task[asyncio.Server]] = {}
        self._local_paths: dict[Path, Path] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._bridge: asyncio.Task[Bridge] | None = None
        self._without_forwarding: SSHClientConnection | None = None
        self._last_error = ""

    async def local_path(self, path: Path) -> Path:
        """Return the path of the local socket that leads to the Unix socket `path` on the remote machine."""
        server = self._servers.get(path)
        if server is None or (server.done() and server.exception()):
            # Use a new context, because the task outlives the trigger that starts it.
            self._servers[path] = asyncio.create_task(self._serve(path), context=Context())
        await asyncio.shield(self._servers[path])
        return self._local_paths[path]

    async def close(self) -> None:
        """Close the local sockets and all connections that use the local sockets."""
        for server in self._servers.values():
            server.cancel()
            await asyncio.wait([server])
            if not server.cancelled() and server.exception() is None:
                server.result().close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        if self._bridge is not None:
            self._close_bridge(self._bridge)
        if self._directory is not None:
            await asyncio.wait([self._directory])
            if self._directory.exception() is None:
                await asyncio.to_thread(self._directory.result().remove)

    async def _serve(self, path: Path) -> asyncio.Server:
        if self._directory is None or (self._directory.done() and self._directory.exception()):
            self._directory = asyncio.create_task(asyncio.to_thread(SocketDirectory))
        local_path = (await asyncio.shield(self._directory)).path / f"{len(self._local_paths)}.sock"
        self._local_paths[path] = local_path

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._handle(path, reader, writer), context=Context())
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        return await asyncio.start_unix_server(connected, local_path)

    async def _handle(self, path: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            connection = await self._link.connection()
            forwarded = self._without_forwarding is not connection and await self._forward(
                connection, path, reader, writer
            )
            if not forwarded:
                await self._over_bridge(connection, path, reader, writer)
        except DeferrableOpsError as error:
            self._log_once(str(error))
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _log_once(self, error: str) -> None:
        """Log an error only if its text differs from the text of the previous error, because clients retry often."""
        if error != self._last_error:
            self._last_error = error
            log.warning("%s", error)

    async def _forward(
        self,
        connection: SSHClientConnection,
        path: Path,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Let sshd connect to the remote socket, and transfer data until the connection ends.

        Return False if sshd could not connect to the remote socket.
        """
        import asyncssh

        try:
            far_reader, far_writer = await connection.open_unix_connection(str(path), encoding=None)
        except (asyncssh.Error, OSError):
            return False
        try:
            await _transfer(reader, writer, far_reader, far_writer)
        finally:
            far_writer.close()
        return True

    async def _over_bridge(
        self,
        connection: SSHClientConnection,
        path: Path,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """If the bridge program can connect to the remote socket, transfer data through this program until the
        connection ends.

        This method is called if sshd could not connect to the remote socket. sshd returns the same error in
        two cases: sshd does not forward sockets, or the remote socket does not exist.
        """
        if not await self._exists(path):
            return
        bridge = self._bridge
        if bridge is None or (bridge.done() and (bridge.exception() or bridge.result().is_closed)):
            bridge = self._bridge = asyncio.create_task(self._create_bridge(), context=Context())
        program = await asyncio.shield(bridge)
        async with program.connect(path, writer) as bridged:
            if bridged is not None:
                self._without_forwarding = connection
                await program.transfer(bridged, reader)
            elif self._without_forwarding is None:
                # No process listens on the socket. Close the bridge: forwarding may work as soon as a process listens.
                self._close_bridge(bridge)

    async def _create_bridge(self) -> Bridge:
        return await self._start_bridge()

    def _close_bridge(self, bridge: asyncio.Task[Bridge]) -> None:
        bridge.cancel()
        if bridge.done() and not bridge.cancelled() and bridge.exception() is None:
            bridge.result().close()
        if self._bridge is bridge:
            self._bridge = None


async def _transfer(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    far_reader: SSHReader[bytes],
    far_writer: SSHWriter[bytes],
) -> None:
    """Transfer data in both directions until the remote side closes the connection."""
    sending = asyncio.create_task(_copy(reader, far_writer))
    try:
        await _copy(far_reader, writer)
    finally:
        sending.cancel()
        await asyncio.wait([sending])


async def _copy(source: Any, target: Any) -> None:
    import asyncssh

    # An error means that one side closed the connection.
    with suppress(asyncssh.Error, OSError):
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
        target.write_eof()


class SocketDirectory:
    """A new private directory for sockets, in the temporary directory. Call the constructor in a thread, because the
    constructor blocks.

    The constructor also removes the directories that killed processes have left. A running process keeps its directory
    locked, so that other processes do not remove this directory. Locks also work if several containers share the
    temporary directory. Process ids instead of locks would not work in this case, because each container has its own
    process ids.

    :raises ConfigurationError: if the path of the temporary directory is too long for a Unix socket.
    """

    def __init__(self) -> None:
        for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            _remove_if_abandoned(directory)
        lock = None
        while lock is None:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            lock = _lock(self.path)
        self._lock = lock
        if len(os.fsencode(self.path)) > _MAX_SOCKET_PATH - len("/1000.sock"):
            self.remove()
            raise ConfigurationError(
                f"the path {self.path} is too long for a directory of Unix sockets; set TMPDIR to a shorter path"
            )

    def remove(self) -> None:
        """Remove the socket directory and its content."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _lock(directory: Path) -> int | None:
    """Lock a new directory, and return the lock. If another process has already removed the directory, return None."""
    with suppress(FileNotFoundError):
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            directory.stat()
            return lock
        except (BlockingIOError, FileNotFoundError):
            os.close(lock)
    return None


def _remove_if_abandoned(directory: Path) -> None:
    with suppress(OSError):
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        finally:
            os.close(lock)
