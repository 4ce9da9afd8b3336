"""Unix sockets of another machine, each as one on this host that only we can open."""

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
_LONGEST: Final = 100  # bytes of a socket's path; the kernel takes 107


class Sockets:
    """The sockets of one machine, for as long as it is used.

    :param start_bridge: starts the program that carries connections where sshd forwards none.
    """

    def __init__(self, link: Link, start_bridge: Callable[[], Awaitable[Bridge]]) -> None:
        self._link = link
        self._start_bridge = start_bridge
        self._directory: asyncio.Task[SocketDirectory] | None = None
        self._servers: dict[Path, asyncio.Task[asyncio.Server]] = {}
        self._local_paths: dict[Path, Path] = {}
        self._carrying: set[asyncio.Task[None]] = set()
        self._bridge: asyncio.Task[Bridge] | None = None
        self._without_forwarding: SSHClientConnection | None = None
        self._complaint = ""

    async def local_path(self, path: Path) -> Path:
        """Return where a socket of the machine is on this host."""
        server = self._servers.get(path)
        if server is None or (server.done() and server.exception()):
            # In a context of its own: it outlives the trigger that happens to come first.
            self._servers[path] = asyncio.create_task(self._serve(path), context=Context())
        await asyncio.shield(self._servers[path])
        return self._local_paths[path]

    async def close(self) -> None:
        """Close the sockets and what goes through them."""
        for server in self._servers.values():
            server.cancel()
            await asyncio.wait([server])
            if not server.cancelled() and server.exception() is None:
                server.result().close()
        for carried in self._carrying:
            carried.cancel()
        if self._carrying:
            await asyncio.wait(self._carrying)
        if self._bridge is not None:
            self._close_bridge(self._bridge)
        if self._directory is not None:
            await asyncio.wait([self._directory])
            if self._directory.exception() is None:
                await asyncio.to_thread(self._directory.result().remove)

    async def _serve(self, path: Path) -> asyncio.Server:
        if self._directory is None or (self._directory.done() and self._directory.exception()):
            self._directory = asyncio.create_task(asyncio.to_thread(SocketDirectory))
        place = (await asyncio.shield(self._directory)).path / f"{len(self._local_paths)}.sock"
        self._local_paths[path] = place

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            carried = asyncio.create_task(self._carry(path, reader, writer), context=Context())
            self._carrying.add(carried)
            carried.add_done_callback(self._carrying.discard)

        return await asyncio.start_unix_server(connected, place)

    async def _carry(self, path: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            connection = await self._link.connection()
            forwarded = self._without_forwarding is not connection and await self._forward(
                connection, path, reader, writer
            )
            if not forwarded:
                await self._over_bridge(connection, path, reader, writer)
        except DeferrableOpsError as error:
            self._complain(str(error))
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _complain(self, complaint: str) -> None:
        """Log what is wrong, but not at each of the attempts of those who keep trying."""
        if complaint != self._complaint:
            self._complaint = complaint
            log.warning("%s", complaint)

    async def _forward(
        self,
        connection: SSHClientConnection,
        path: Path,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Carry a connection until it is over; return False when sshd does not open the socket."""
        import asyncssh

        try:
            far_reader, far_writer = await connection.open_unix_connection(str(path), encoding=None)
        except (asyncssh.Error, OSError):
            return False
        try:
            await _pass_on(reader, writer, far_reader, far_writer)
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
        """Carry a connection over the bridge until it is over, if that opens the socket.

        sshd says the same whether it forwards nothing or there is no such socket.
        """
        if not await self._exists(path):
            return
        bridge = self._bridge
        if bridge is None or (bridge.done() and (bridge.exception() or bridge.result().is_over)):
            bridge = self._bridge = asyncio.create_task(self._started_bridge(), context=Context())
        program = await asyncio.shield(bridge)
        async with program.opened(path, writer) as carried:
            if carried is not None:
                self._without_forwarding = connection
                await program.carry(carried, reader)
            elif self._without_forwarding is None:
                self._close_bridge(bridge)  # nobody listens there; forwarding may be fine

    async def _exists(self, path: Path) -> bool:
        import asyncssh

        try:
            async with self._link.sftp(self._link.settings.command_seconds) as sftp:
                return await sftp.exists(str(path))
        except (asyncssh.SFTPPermissionDenied, TimeoutError):
            return False

    async def _started_bridge(self) -> Bridge:
        return await self._start_bridge()

    def _close_bridge(self, bridge: asyncio.Task[Bridge]) -> None:
        bridge.cancel()
        if bridge.done() and not bridge.cancelled() and bridge.exception() is None:
            bridge.result().close()
        if self._bridge is bridge:
            self._bridge = None


async def _pass_on(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    far_reader: SSHReader[bytes],
    far_writer: SSHWriter[bytes],
) -> None:
    """Return when the far side has said all; what it is sent meanwhile may have any length."""
    sending = asyncio.create_task(_copy(reader, far_writer))
    try:
        await _copy(far_reader, writer)
    finally:
        sending.cancel()
        await asyncio.wait([sending])


async def _copy(source: Any, target: Any) -> None:
    import asyncssh

    with suppress(asyncssh.Error, OSError):  # one end broke off: so it ends
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
        target.write_eof()


class SocketDirectory:
    """A new directory of ours in the temporary one. Those that killed processes left there are removed. It blocks.

    Whose process lives has it locked: also a process in another container, whose id says nothing here.

    :raises ConfigurationError: its name is too long for a socket in it.
    """

    def __init__(self) -> None:
        for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            _remove_if_left(left)
        lock = None
        while lock is None:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            lock = _locked(self.path)
        self._lock = lock
        if len(os.fsencode(self.path)) > _LONGEST - len("/1000.sock"):
            self.remove()
            raise ConfigurationError(
                f"{self.path} is too long a path for a Unix socket; set TMPDIR to a shorter directory"
            )

    def remove(self) -> None:
        """Remove it with what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _locked(directory: Path) -> int | None:
    """Return the lock on a new directory; None where it looked to another process as if it had been left."""
    with suppress(FileNotFoundError):
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            directory.stat()
            return lock
        except (BlockingIOError, FileNotFoundError):
            os.close(lock)
    return None


def _remove_if_left(directory: Path) -> None:
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
