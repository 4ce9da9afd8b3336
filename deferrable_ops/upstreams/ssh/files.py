"""Reads and writes files of a remote machine over SFTP. The module ``link.py`` opens the SSH connection, and handles
its errors.
"""

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

# If the size of a file is unknown, this number of bytes is read at once.
_PART: Final = 262_144


class RemoteFiles:
    """Implements the methods of :class:`Machine` that read and write files, over SFTP.

    :param seconds: timeout of each operation in seconds. If `seconds` is None, the timeout in the Airflow connection
        applies.
    """

    def __init__(self, link: Link, seconds: float | None) -> None:
        self._link = link
        self._seconds = seconds
        self._cleanups: set[asyncio.Future[None]] = set()

    async def make_directory(self, path: Path, uid: int) -> None:
        """See :meth:`Machine.make_directory`.

        :param uid: user id of the library's account on the remote machine, which must own the directory.
        """
        await self._check_path(path, uid, make=True)

    async def check_directory(self, path: Path, uid: int) -> bool:
        """See :meth:`Machine.check_directory`.

        :param uid: user id of the library's account on the remote machine, which must own the directory.
        """
        return await self._check_path(path, uid, make=False)

    async def _check_path(self, path: Path, uid: int, *, make: bool) -> bool:
        """Check that no other user can replace a directory or one of its parents. Return whether the directory exists.

        :param make: True to create the directory and its parents if they are missing. With False, the method
            creates nothing, and returns False if the directory is missing.
        """
        import asyncssh

        async with self._sftp(path) as sftp:
            existing = path.parent
            while not await sftp.exists(str(existing)):
                existing = existing.parent
            # First resolve all links, and check the part of the path that exists. Then check the path as it was given,
            # including links and missing parts.
            for directories in (Path(str(await sftp.realpath(str(existing)))), path):
                for directory in (*reversed(directories.parents), directories):
                    try:
                        found = await sftp.lstat(str(directory))
                    except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
                        if not make:
                            return False
                        # SFTPFailure: another process has created the directory in the meantime.
                        with suppress(asyncssh.SFTPFailure):
                            await sftp.mkdir(str(directory), asyncssh.SFTPAttrs(permissions=0o700))
                        found = await sftp.lstat(str(directory))
                    await self._check_entry(sftp, directory, found, uid)
            if problem := ownership_problem(path, _entry(await sftp.lstat(str(path))), uid):
                raise MachineRefused(f"on {self._link.settings.name}, {problem}")
            return True

    async def _check_entry(self, sftp: SFTPClient, directory: Path, found: SFTPAttrs, uid: int) -> None:
        parent = _entry(await sftp.stat(str(directory.parent)))
        if problem := replacement_problem(directory, _entry(found), parent, uid):
            raise MachineRefused(f"on {self._link.settings.name}, {problem}")

    async def write(self, path: Path, data: bytes) -> None:
        """See :meth:`Machine.write`."""
        import asyncssh

        temporary = str(path.with_name(f".{path.name}.{secrets.token_hex(8)}"))
        flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_EXCL
        async with self._sftp(path) as sftp:
            try:
                attributes = asyncssh.SFTPAttrs(permissions=0o600)
                async with self._open(sftp, temporary, flags, attributes) as file:
                    await file.write(data)
                    with suppress(asyncssh.SFTPOpUnsupported):
                        await file.fsync()
                await sftp.posix_rename(temporary, str(path))
            except BaseException:
                await self._clean_up(sftp.remove(temporary))
                raise

    async def read(self, path: Path, offset: int, length: int | None) -> bytes | None:
        """See :meth:`Machine.read`."""
        import asyncssh

        async with self._sftp(path) as sftp:
            try:
                async with self._open(sftp, str(path), asyncssh.FXF_READ, asyncssh.SFTPAttrs()) as file:
                    if length is not None:
                        return _bytes(await file.read(length, offset)) if length else b""
                    # Do not rely on the size: files in /proc report 0.
                    found = bytearray()
                    while part := _bytes(await file.read(_PART, offset + len(found))):
                        found += part
                    return bytes(found)
            except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
                return None

    async def status(self, path: Path) -> FileStatus | None:
        """See :meth:`Machine.status`. The inode number in the result is 0, because SFTP does not transfer inode
        numbers.
        """
        import asyncssh

        async with self._sftp(path) as sftp:
            try:
                found = await sftp.stat(str(path))
            except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
                return None
            kind = stat.S_IFMT(found.permissions or 0)
            return FileStatus(found.size or 0, 0, float(found.mtime or 0), kind == stat.S_IFREG)

    @asynccontextmanager
    async def _open(
        self, sftp: SFTPClient, path: str, flags: int, attributes: SFTPAttrs
    ) -> AsyncIterator[SFTPClientFile]:
        """Open a remote file in binary mode, and close it at the end of the ``with`` block."""
        file = await sftp.open(path, flags, attributes, encoding=None)
        try:
            yield file
        except BaseException:
            await self._clean_up(file.close())
            raise
        await file.close()

    async def _clean_up(self, cleanup: Awaitable[None]) -> None:
        """Await `cleanup` after a file operation has failed.

        If the operation was cancelled or has timed out, `cleanup` runs in the background, because the server may not
        respond.
        """
        task = asyncio.ensure_future(cleanup)
        self._cleanups.add(task)
        task.add_done_callback(self._cleanup_done)
        if isinstance(sys.exception(), asyncio.CancelledError):
            return
        await asyncio.wait([task])

    def _cleanup_done(self, task: asyncio.Future[None]) -> None:
        self._cleanups.discard(task)
        if not task.cancelled():
            # Mark the exception as retrieved, so that asyncio does not log it: the original error is already reported.
            task.exception()

    @asynccontextmanager
    async def _sftp(self, path: Path) -> AsyncIterator[SFTPClient]:
        """Yield the shared SFTP session. In the ``with`` block, convert SFTP errors about this path into a
        MachineError.
        """
        import asyncssh

        if not path.is_absolute():
            raise InputError(f"the path must be absolute, not {str(path)!r}")
        seconds = self._seconds or self._link.settings.command_seconds
        try:
            async with self._link.sftp(seconds) as sftp:
                try:
                    yield sftp
                except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection):
                    raise
                except asyncssh.SFTPError as error:
                    raise await self._machine_error(sftp, path, error) from None
        except TimeoutError:
            raise MachineUnavailable(
                f"{self._link.settings.name} took longer than {seconds:g} s to access {path}"
            ) from None

    async def _machine_error(self, sftp: SFTPClient, path: Path, error: Exception) -> MachineError:
        """Return the MachineError that corresponds to an SFTP error.

        Most SFTP errors have only the text "Failure", so the method tries to find the cause.
        """
        import asyncssh

        message = f"cannot access {path} on {self._link.settings.name}: {error}"
        if isinstance(error, asyncssh.SFTPFailure):
            if await sftp.isdir(str(path)):
                return MachineRefused(f"{message} (the path is a directory; give the path of a file)")
            return MachineUnavailable(
                f"{message} (check whether the disk is full, and whether every parent of the path is a directory)"
            )
        return MachineRefused(message)


def _entry(found: SFTPAttrs) -> Entry:
    return Entry(found.permissions or 0, -1 if found.uid is None else found.uid)


def _bytes(found: object) -> bytes:
    assert isinstance(found, bytes), "a file that is opened without an encoding gives bytes"
    return found
