"""Files over SFTP. What the connection itself is refused for, or loses, is the link's to say."""

from __future__ import annotations

import asyncio
import secrets
import stat
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deferrable_ops.exceptions import InputError, MachineError, MachineRefused, MachineUnavailable
from deferrable_ops.upstreams.machine.machine import FileStatus
from deferrable_ops.upstreams.machine.private_directory import Entry, ownership_problem, replacement_problem
from deferrable_ops.upstreams.ssh.link import Link

if TYPE_CHECKING:
    from asyncssh import SFTPAttrs, SFTPClient, SFTPClientFile

_PART: Final = 262_144  # bytes that are read at once of a file whose size nobody knows


class RemoteFiles:
    """The files of a machine; see :class:`Machine`.

    :param seconds: that each thing may take; None: what the connection says.
    """

    def __init__(self, link: Link, seconds: float | None) -> None:
        self._link = link
        self._seconds = seconds
        self._tidying: set[asyncio.Future[None]] = set()

    async def make_directory(self, path: Path, uid: int) -> None:
        """See :meth:`Machine.make_directory`.

        :param uid: ours, there.
        """
        await self._walk(path, uid, make=True)

    async def check_directory(self, path: Path, uid: int) -> bool:
        """See :meth:`Machine.check_directory`.

        :param uid: ours, there.
        """
        return await self._walk(path, uid, make=False)

    async def _walk(self, path: Path, uid: int, *, make: bool) -> bool:
        """Return whether there is a directory of ours in the end; what is missing is made, or ends the walk."""
        import asyncssh

        async with self._sftp(path) as sftp:
            there = path.parent
            while not await sftp.exists(str(there)):
                there = there.parent
            # What is there as it really is, and then with the links that lead to it and with what is missing.
            for directories in (Path(str(await sftp.realpath(str(there)))), path):
                for directory in (*reversed(directories.parents), directories):
                    try:
                        found = await sftp.lstat(str(directory))
                    except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
                        if not make:
                            return False
                        with suppress(asyncssh.SFTPFailure):  # somebody else was faster
                            await sftp.mkdir(str(directory), asyncssh.SFTPAttrs(permissions=0o700))
                        found = await sftp.lstat(str(directory))
                    await self._check_one(sftp, directory, found, uid)
            if complaint := ownership_problem(path, _entry(await sftp.lstat(str(path))), uid):
                raise MachineRefused(f"on {self._link.settings.name}, {complaint}")
            return True

    async def _check_one(self, sftp: SFTPClient, directory: Path, found: SFTPAttrs, uid: int) -> None:
        parent = _entry(await sftp.stat(str(directory.parent)))
        if complaint := replacement_problem(directory, _entry(found), parent, uid):
            raise MachineRefused(f"on {self._link.settings.name}, {complaint}")

    async def write(self, path: Path, data: bytes) -> None:
        """See :meth:`Machine.write`."""
        import asyncssh

        temporary = str(path.with_name(f".{path.name}.{secrets.token_hex(8)}"))
        flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_EXCL
        async with self._sftp(path) as sftp:
            try:
                attributes = asyncssh.SFTPAttrs(permissions=0o600)
                async with self._opened(sftp, temporary, flags, attributes) as file:
                    await file.write(data)
                    with suppress(asyncssh.SFTPOpUnsupported):
                        await file.fsync()
                await sftp.posix_rename(temporary, str(path))
            except BaseException:
                await self._unless_cancelled(sftp.remove(temporary))
                raise

    async def read(self, path: Path, offset: int, length: int | None) -> bytes | None:
        """See :meth:`Machine.read`."""
        import asyncssh

        async with self._sftp(path) as sftp:
            try:
                async with self._opened(sftp, str(path), asyncssh.FXF_READ, asyncssh.SFTPAttrs()) as file:
                    if length is not None:
                        return _bytes(await file.read(length, offset)) if length else b""
                    # A file of /proc says that it has no size, so that is not asked.
                    found = bytearray()
                    while part := _bytes(await file.read(_PART, offset + len(found))):
                        found += part
                    return bytes(found)
            except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
                return None

    async def status(self, path: Path) -> FileStatus | None:
        """See :meth:`Machine.status`; without an inode, which SFTP does not tell."""
        import asyncssh

        async with self._sftp(path) as sftp:
            try:
                found = await sftp.stat(str(path))
            except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
                return None
            kind = stat.S_IFMT(found.permissions or 0)
            return FileStatus(found.size or 0, 0, float(found.mtime or 0), kind == stat.S_IFREG)

    @asynccontextmanager
    async def _opened(
        self, sftp: SFTPClient, path: str, flags: int, attributes: SFTPAttrs
    ) -> AsyncIterator[SFTPClientFile]:
        """Open a file of bytes."""
        file = await sftp.open(path, flags, attributes, encoding=None)
        try:
            yield file
        except BaseException:
            await self._unless_cancelled(file.close())
            raise
        await file.close()

    async def _unless_cancelled(self, tidying: Awaitable[None]) -> None:
        """Tidy up after an error, but let nobody whose time is over wait for it: the server may never answer."""
        task = asyncio.ensure_future(tidying)
        self._tidying.add(task)
        task.add_done_callback(self._tidied)
        if isinstance(sys.exception(), asyncio.CancelledError):
            return
        await asyncio.wait([task])

    def _tidied(self, task: asyncio.Future[None]) -> None:
        self._tidying.discard(task)
        if not task.cancelled():
            task.exception()  # what was wrong is told already

    @asynccontextmanager
    async def _sftp(self, path: Path) -> AsyncIterator[SFTPClient]:
        """Use SFTP, and let what it says of a path be one of our errors."""
        import asyncssh

        if not path.is_absolute():
            raise InputError(f"{str(path)!r} is relative to nothing here; give an absolute path")
        seconds = self._seconds or self._link.settings.command_seconds
        try:
            async with self._link.sftp(seconds) as sftp:
                try:
                    yield sftp
                except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection):
                    raise
                except asyncssh.SFTPError as error:
                    raise await self._meaning(sftp, path, error) from None
        except TimeoutError:
            raise MachineUnavailable(
                f"{self._link.settings.name} took longer than {seconds:g} s for {path}"
            ) from None

    async def _meaning(self, sftp: SFTPClient, path: Path, error: Exception) -> MachineError:
        """Return what an SFTP error means, as far as that can be known: most of them are "Failure" in version 3."""
        import asyncssh

        told = f"{path} on {self._link.settings.name}: {error}"
        if isinstance(error, asyncssh.SFTPFailure):
            if await sftp.isdir(str(path)):
                return MachineRefused(f"{told} (it is a directory)")
            return MachineUnavailable(
                f"{told} (the disk may be full, or the path's parts are no directories)"
            )
        return MachineRefused(told)


def _entry(found: SFTPAttrs) -> Entry:
    return Entry(found.permissions or 0, -1 if found.uid is None else found.uid)


def _bytes(found: object) -> bytes:
    assert isinstance(found, bytes), "a file that is opened without an encoding gives bytes"
    return found
