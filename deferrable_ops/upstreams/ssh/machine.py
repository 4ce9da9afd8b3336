"""Implements :class:`~deferrable_ops.upstreams.machine.machine.Machine` for a remote machine over SSH."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deferrable_ops.exceptions import InputError, MachineError, MachineRefused, MachineUnavailable
from deferrable_ops.shared import share
from deferrable_ops.upstreams.machine.machine import (
    OUTPUT_KEPT,
    CommandResult,
    FileStatus,
    Identity,
    MachineAddress,
)
from deferrable_ops.upstreams.machine.signals import PROC, command_by_ps, signal_of
from deferrable_ops.upstreams.ssh.bridge import Bridge, bridge_program
from deferrable_ops.upstreams.ssh.command import Command, script_line, shell_command
from deferrable_ops.upstreams.ssh.files import RemoteFiles
from deferrable_ops.upstreams.ssh.link import Link, use_link
from deferrable_ops.upstreams.ssh.sockets import Sockets

if TYPE_CHECKING:
    from asyncssh import SSHClientConnection

_IDENTITY: Final = """
cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo
uname -n; id -un 2>/dev/null || id -u; id -u
"""
# stat has two syntaxes. The script tries that of GNU and busybox first, and then that of BSD and macOS.
_NO_STAT: Final = "no stat"
_STATUS: Final = f"""
LC_ALL=C; export LC_ALL
if stat -c %i / >/dev/null 2>&1; then stat -L -c '%i %s %Y %F/%n' -- "$@" 2>/dev/null
elif stat -f %i / >/dev/null 2>&1; then stat -L -f '%i %z %m %HT/%N' -- "$@" 2>/dev/null
else echo {_NO_STAT}
fi
"""
_KILL_SECONDS: Final = 5.0
# The maximum number of paths per command.
_PATHS_AT_ONCE: Final = 100
# In bytes. This is enough for the output of one status command.
_STATUS_OUTPUT_KEPT: Final = 1 << 20


def use_remote_host(address: MachineAddress) -> AbstractAsyncContextManager[SshMachine]:
    """Return a context manager for the remote machine with this address.

    All callers on an event loop with the same address share one SSH connection.
    """
    return share(("ssh machine", address), partial(_open, address), SshMachine.close)


async def _open(address: MachineAddress) -> SshMachine:
    async with AsyncExitStack() as stack:
        link = await stack.enter_async_context(use_link(address))
        return SshMachine(address, link, stack.pop_all())


class SshMachine:
    """Implements :class:`Machine` for a remote machine over SSH.

    :param until_closed: an exit stack. When the machine is closed, this stack releases the shared SSH connection.
    """

    def __init__(self, address: MachineAddress, link: Link, until_closed: AsyncExitStack) -> None:
        self._environment = address.environment
        self._line = shell_command(address.command_prefix)
        self._link = link
        self._until_closed = until_closed
        self._seconds = address.command_timeout
        self._files = RemoteFiles(link, address.command_timeout)
        self._sockets = Sockets(link, self._start_bridge)
        self._identity: tuple[SSHClientConnection, Identity] | None = None

    @property
    def name(self) -> str:
        """The name by which messages call the machine, such as ``airflow@web-3:22``."""
        return self._link.settings.name

    async def identity(self) -> Identity:
        """See :meth:`Machine.identity`. The identity is read once for each SSH connection."""
        connection = await self._link.connection()
        if self._identity is not None and self._identity[0] is connection:
            return self._identity[1]
        lines = await self._lines_of(_IDENTITY)
        if len(lines) != 4 or not lines[3].isdigit():
            raise MachineRefused(
                f"could not determine the host name and the user on {self.name}; check that the commands uname and id "
                f"work for this account. The commands printed {lines!r}"
            )
        boot_id, host, user, uid = lines
        found = Identity(host, boot_id, user, int(uid))
        self._identity = connection, found
        return found

    async def make_directory(self, path: Path) -> None:
        """See :meth:`Machine.make_directory`."""
        await self._files.make_directory(path, (await self.identity()).uid)

    async def check_directory(self, path: Path) -> bool:
        """See :meth:`Machine.check_directory`."""
        return await self._files.check_directory(path, (await self.identity()).uid)

    async def write(self, path: Path, data: bytes) -> None:
        """See :meth:`Machine.write`."""
        await self._files.write(path, data)

    async def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        """See :meth:`Machine.read`."""
        return await self._files.read(path, offset, length)

    async def status(self, *paths: Path, inodes: bool = False) -> list[FileStatus | None]:
        """See :meth:`Machine.status`."""
        if any("\n" in str(path) or not path.is_absolute() for path in paths):
            raise InputError(
                "a path is relative or contains a line break; give absolute paths without line breaks"
            )
        lines = list[str]()
        for first in range(0, len(paths), _PATHS_AT_ONCE) if inodes else ():
            lines += await self._lines_of(_STATUS, *map(str, paths[first : first + _PATHS_AT_ONCE]))
        if not inodes or _NO_STAT in lines:
            return await asyncio.gather(*map(self._files.status, paths))
        found = dict(map(_parse_status, lines))
        return [found.get(str(path)) for path in paths]

    async def remove(self, path: Path) -> None:
        """See :meth:`Machine.remove`."""
        if not path.is_absolute() or path == path.parent:
            raise InputError(
                f"{str(path)!r} cannot be removed; give an absolute path below the root directory"
            )
        ended = await self._run(["env", "LC_ALL=C", "rm", "-rf", "--", str(path)])
        if ended.code:
            kind = MachineUnavailable if "not empty" in ended.output else MachineRefused
            raise kind(f"{path} on {self.name} cannot be removed: {ended.output.strip()}")

    async def run(self, arguments: Sequence[str], *, timeout: float, stdin: bytes = b"") -> CommandResult:
        """See :meth:`Machine.run`."""
        return await self._run(arguments, timeout, stdin)

    async def signal(self, pid: int, name: str) -> bool:
        """See :meth:`Machine.signal`."""
        number = signal_of(name)
        if await self.command_of(pid) is None:
            return False
        ended = await self._run(["sh", "-c", 'kill -s "$1" "$2"', "sh", number.name[3:], str(pid)])
        if ended.code and await self.command_of(pid) is not None:
            raise MachineRefused(f"could not send a signal to process {pid} on {self.name}: {ended.output}")
        return ended.code == 0

    async def command_of(self, pid: int) -> tuple[str, ...] | None:
        """See :meth:`Machine.command_of`."""
        if pid < 1:
            return None
        line = await self._files.read(PROC.parent.parent / str(pid) / "cmdline", 0, None)
        if line:
            return tuple(os.fsdecode(line).removesuffix("\0").split("\0"))
        if line is None and (await self.status(PROC))[0] is None:
            return await command_by_ps(self, pid)
        return None

    async def socket(self, path: Path) -> Path:
        """See :meth:`Machine.socket`."""
        return await self._sockets.local_path(path)

    async def close(self) -> None:
        """Close the local sockets, and release the shared SSH connection."""
        async with self._until_closed:
            await self._sockets.close()

    async def _lines_of(self, script: str, *arguments: str) -> list[str]:
        """Run a shell script on the machine, and return the lines of its output."""
        end = "end of output"
        ended = await self._run(
            ["sh", "-c", f"{script}echo {end}", "sh", *arguments], keep=_STATUS_OUTPUT_KEPT
        )
        *lines, last = ended.output.splitlines() or [""]
        if last != end:
            raise MachineRefused(
                f"{self.name} does not run shell commands as expected; give the account a shell. The shell printed "
                f"{ended.output[-500:]!r}"
            )
        return lines

    async def _run(
        self,
        arguments: Sequence[str],
        timeout: float | None = None,
        stdin: bytes = b"",
        keep: int = OUTPUT_KEPT,
    ) -> CommandResult:
        seconds = timeout or self._seconds or self._link.settings.command_seconds
        command = Command(keep)
        try:
            async with asyncio.timeout(seconds), self._link.commands:
                await self._link.session(
                    lambda connection: command.start(
                        connection, self._line, arguments, self._environment, stdin
                    )
                )
                code = await self._link.receive(command.wait())
        except TimeoutError:
            raise MachineUnavailable(
                f"{arguments[0]} took longer than {seconds:g} s on {self.name}{await self._kill(command)}; "
                f"it wrote: {command.tail[-500:]!r}"
            ) from None
        finally:
            command.close()
        return CommandResult(code, command.tail)

    async def _kill(self, command: Command) -> str:
        """Kill a command and all processes in its session. sshd does not kill commands that run as root.

        Return a text for the error message: whether the command was killed.
        """
        if command.pid is None:
            return ""
        try:
            ended = await self._run(["sh", "-c", f"kill -s KILL -- -{command.pid}"], _KILL_SECONDS)
        except MachineError:
            return ""
        return "" if ended.code else ", and was killed"

    async def _start_bridge(self) -> Bridge:
        program = 'exec "$(command -v python3 || command -v python)" -I -c "$1"'
        text = await asyncio.to_thread(bridge_program)
        given = script_line(["sh", "-c", program, "sh", text], self._environment)
        return await self._link.session(lambda connection: Bridge().start(connection, self._line, given))


def _parse_status(line: str) -> tuple[str, FileStatus]:
    """Parse one line of the output of the script ``_STATUS``. Return a path, and the status of the file at this
    path.
    """
    fields, _, name = line.partition("/")
    inode, size, modified, kind = fields.split(" ", 3)
    # For an empty file, stat prints "regular empty file".
    is_regular = kind.lower().startswith("regular")
    return name, FileStatus(int(size), int(inode), float(modified), is_regular)
