"""Implements the class :class:`~deferrable_ops.upstreams.machine.machine.Machine` for the local host."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

from deferrable_ops.exceptions import MachineRefused, MachineUnavailable
from deferrable_ops.upstreams.machine import local_files
from deferrable_ops.upstreams.machine.machine import OUTPUT_KEPT, CommandResult, FileStatus, Identity
from deferrable_ops.upstreams.machine.signals import NO_PROGRAM, NOT_RUNNABLE, PROC, command_by_ps, signal_of

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@asynccontextmanager
async def use_this_host() -> AsyncIterator[LocalMachine]:
    """Return a context manager for the local host. No connection is needed."""
    yield LocalMachine()


class LocalMachine:
    """Implements :class:`Machine` for the local host. The files are read and written in threads, because file
    operations block.
    """

    def __init__(self) -> None:
        self.name = f"this host ({os.uname().nodename})"

    async def identity(self) -> Identity:
        """See :meth:`Machine.identity`."""
        boot_id = await asyncio.to_thread(local_files.read, _BOOT_ID, 0, None)
        uid = os.geteuid()
        try:
            user = await asyncio.to_thread(lambda: pwd.getpwuid(uid).pw_name)
        except KeyError:
            # The uid has no user name. This happens in some containers.
            user = str(uid)
        return Identity(os.uname().nodename, (boot_id or b"").decode().strip(), user, uid)

    async def make_directory(self, path: Path) -> None:
        """See :meth:`Machine.make_directory`."""
        await asyncio.to_thread(local_files.make_directory, path)

    async def check_directory(self, path: Path) -> bool:
        """See :meth:`Machine.check_directory`."""
        return await asyncio.to_thread(local_files.check_directory, path)

    async def write(self, path: Path, data: bytes) -> None:
        """See :meth:`Machine.write`."""
        await asyncio.to_thread(local_files.write, path, data)

    async def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        """See :meth:`Machine.read`."""
        return await asyncio.to_thread(local_files.read, path, offset, length)

    async def status(self, *paths: Path, inodes: bool = False) -> list[FileStatus | None]:
        """See :meth:`Machine.status`."""
        return await asyncio.to_thread(lambda: [local_files.status(path) for path in paths])

    async def free_space(self, *paths: Path) -> list[int | None]:
        """See :meth:`Machine.free_space`."""
        return await asyncio.to_thread(lambda: [local_files.free_space(path) for path in paths])

    async def remove(self, path: Path) -> None:
        """See :meth:`Machine.remove`."""
        await asyncio.to_thread(local_files.remove, path)

    async def run(self, arguments: Sequence[str], *, timeout: float, stdin: bytes = b"") -> CommandResult:
        """See :meth:`Machine.run`."""
        # Use files instead of pipes. The command may leave a daemon running, and the daemon would keep pipes open.
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as given:
            given.write(stdin)
            given.seek(0)
            try:
                process = await asyncio.create_subprocess_exec(
                    *arguments, stdin=given, stdout=output, stderr=output, start_new_session=True, cwd=_home()
                )
            except FileNotFoundError:
                return CommandResult(NO_PROGRAM, f"{arguments[0]}: not found")
            except PermissionError:
                return CommandResult(NOT_RUNNABLE, f"{arguments[0]}: permission denied")
            code = await self._wait_for(process, timeout)
            if code is None:
                raise MachineUnavailable(
                    f"{arguments[0]} took longer than {timeout:g} s on {self.name}, and was killed; it wrote: "
                    f"{_tail(output)!r}"
                )
            return CommandResult(code, _tail(output))

    async def signal(self, pid: int, name: str) -> bool:
        """See :meth:`Machine.signal`."""
        number = signal_of(name)
        if await self.command_of(pid) is None:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            raise MachineRefused(
                f"cannot send a signal to process {pid} on {self.name}, because the process belongs to another user"
            ) from None
        return True

    async def command_of(self, pid: int) -> tuple[str, ...] | None:
        """See :meth:`Machine.command_of`."""
        if pid < 1:
            return None
        if not await asyncio.to_thread(PROC.exists):
            return await command_by_ps(self, pid)
        try:
            line = await asyncio.to_thread(
                local_files.read, PROC.parent.parent / str(pid) / "cmdline", 0, None
            )
        except MachineRefused:
            # The process ended while its file in /proc was read.
            return None
        return tuple(os.fsdecode(line).removesuffix("\0").split("\0")) if line else None

    async def socket(self, path: Path) -> Path:
        """See :meth:`Machine.socket`."""
        return path

    async def _wait_for(self, process: asyncio.subprocess.Process, timeout: float) -> int | None:
        """Return the exit code of a process, or None if the process has not ended before the timeout.

        After a timeout or a cancellation, kill the process and all other processes of its session.
        """
        try:
            async with asyncio.timeout(timeout):
                return await process.wait()
        except TimeoutError:
            return None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


def _home() -> Path:
    home = Path.home()
    return home if home.is_dir() else Path("/")


def _tail(output: IO[bytes]) -> str:
    output.seek(max(0, output.seek(0, os.SEEK_END) - OUTPUT_KEPT))
    return output.read().decode(errors="replace")
