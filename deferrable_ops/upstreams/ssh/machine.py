"""Implements :class:`~deferrable_ops.upstreams.machine.machine.Machine` for a remote machine over SSH."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deferrable_ops.exceptions import MachineError, MachineRefused, MachineUnavailable
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
from deferrable_ops.upstreams.ssh.command import Command, not_started_error, script_line, shell_command
from deferrable_ops.upstreams.ssh.files import RemoteFiles
from deferrable_ops.upstreams.ssh.link import Link, use_link
from deferrable_ops.upstreams.ssh.sockets import Sockets

if TYPE_CHECKING:
    from asyncssh import SSHClientConnection

_IDENTITY: Final = """
cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo
uname -n; id -un 2>/dev/null || id -u; id -u
"""
_KILL_SECONDS: Final = 5.0


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
        self._prefix = address.command_prefix.strip()
        self._link = link
        self._until_closed = until_closed
        self._seconds = address.command_timeout
        self._files = RemoteFiles(self._run_script, link)
        self._sockets = Sockets(link, self._start_bridge, self._files.exists)
        self._identity: tuple[SSHClientConnection, Identity] | None = None

    @property
    def name(self) -> str:
        """The machine's name in log lines and errors, such as ``airflow@web-3:22``."""
        return self._link.settings.name

    async def identity(self) -> Identity:
        """See :meth:`Machine.identity`. The identity is read once for each SSH connection."""
        connection = await self._link.connection()
        if self._identity is not None and self._identity[0] is connection:
            return self._identity[1]
        _, output = await self._run_script(_IDENTITY, about="reading the host name")
        lines = output.decode(errors="replace").splitlines()
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
        return await self._files.status(paths)

    async def free_space(self, *paths: Path) -> list[int | None]:
        """See :meth:`Machine.free_space`."""
        return await self._files.free_space(paths)

    async def remove(self, path: Path) -> None:
        """See :meth:`Machine.remove`."""
        await self._files.remove(path)

    async def run(self, arguments: Sequence[str], *, timeout: float, stdin: bytes = b"") -> CommandResult:
        """See :meth:`Machine.run`."""
        code, output = await self._run(
            arguments, timeout, stdin, keep=OUTPUT_KEPT, environment=self._environment, prefix=self._prefix
        )
        return CommandResult(code, output.decode(errors="replace"))

    async def signal(self, pid: int, name: str) -> bool:
        """See :meth:`Machine.signal`."""
        number = signal_of(name)
        if await self.command_of(pid) is None:
            return False
        script = 'kill -s "$1" "$2" 2>&1'
        code, output = await self._run_script(script, number.name[3:], str(pid), about=f"sending {name}")
        if code and await self.command_of(pid) is not None:
            reason = output.decode(errors="replace")
            raise MachineRefused(f"could not send a signal to process {pid} on {self.name}: {reason}")
        return code == 0

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

    async def _run_script(
        self, script: str, *arguments: str, about: str, stdin: bytes | None = None
    ) -> tuple[int, bytes]:
        """See :class:`RunScript`. The environment variables and the prefix of the address do not apply."""
        if stdin is not None:
            return await self._run(["sh", "-c", script, "sh", *arguments], None, stdin, about=about)
        seconds = self._seconds or self._link.settings.command_seconds
        return await self._link.run_script(script, *arguments, seconds=seconds, about=about)

    async def _run(
        self,
        arguments: Sequence[str],
        timeout: float | None = None,
        stdin: bytes = b"",
        *,
        keep: int | None = None,
        environment: Sequence[tuple[str, str]] = (),
        prefix: str = "",
        about: str = "",
    ) -> tuple[int, bytes]:
        """Run a command. Return its exit code and its output; see :class:`Command` for `keep`.

        :param about: what the command does, for the error message after a timeout; by default the program's name.
        """
        seconds = timeout or self._seconds or self._link.settings.command_seconds
        command, line = Command(keep), shell_command(prefix)
        try:
            async with asyncio.timeout(seconds), self._link.commands:
                await self._link.session(
                    lambda connection: command.start(connection, line, arguments, environment, stdin)
                )
                code = await self._link.receive(command.wait())
        except TimeoutError:
            raise MachineUnavailable(
                f"{about or arguments[0]} took longer than {seconds:g} s on {self.name}{await self._kill(command)}; "
                f"it wrote: {command.tail!r}"
            ) from None
        finally:
            command.close()
        if command.pid is None:
            raise not_started_error(self.name, prefix, code, command.tail)
        return code, command.output

    async def _kill(self, command: Command) -> str:
        """Kill a command and all processes in its session. sshd does not kill commands that run as root.

        Return a text for the error message, with the information whether the command was killed.
        """
        if command.pid is None:
            return ""
        try:
            kill = f"kill -s KILL -- -{command.pid}"
            code, _ = await self._link.run_script(kill, seconds=_KILL_SECONDS, about="killing it")
        except MachineError:
            return ""
        return "" if code else ", and was killed"

    async def _start_bridge(self) -> Bridge:
        program = 'exec "$(command -v python3 || command -v python)" -I -c "$1"'
        text = await asyncio.to_thread(bridge_program)
        given = script_line(["sh", "-c", program, "sh", text], self._environment)
        line = shell_command(self._prefix)
        return await self._link.session(lambda connection: Bridge().start(connection, line, given))
