"""A machine on which a supervisord runs, this one or another: its files, its commands, and the sockets on it.

``use_machine(Where())`` is this host (``local_machine.py``); with an ``ssh_conn_id`` it is the one that this Airflow
connection reaches (``ssh.py``): one SSH connection for all who use it on an event loop, which connects by itself when
it is needed, again when it was lost, and never for one who only waits.

All paths are absolute, and those of that machine. Three errors come from every method:

- MachineUnavailable: it cannot be reached now, or took too long. What was asked may have been done, and may be asked
  again: every method here may be repeated.
- MachineRefused: the login, the host key, a permission: it will be refused again. The message names the fix.
- ConfigurationError: the Airflow connection is missing or malformed, or asyncssh is not installed.

None of them holds a secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from deferrable_ops.exceptions import InputError

OUTPUT_KEPT: Final = 8192
"""How many bytes of a command's output are kept: the last ones."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which machine this is, since when it runs, and as whom we are there.

    :param host: its name, as ``uname -n`` says it.
    :param boot_id: changes with each start of the machine; "" where that is not told (it is on Linux).
    :param user: the name of the account.
    :param uid: its number.
    """

    host: str
    boot_id: str
    user: str
    uid: int


@dataclass(frozen=True, slots=True)
class FileStatus:
    """A file, as far as it can be told; links are followed.

    :param size: in bytes.
    :param inode: 0 where it was not asked for, see :meth:`Machine.status`.
    :param modified: seconds since 1970, by the machine's clock; whole ones over SSH.
    :param is_regular: whether it holds bytes, and reading ends: it is no directory, device, socket or pipe.
    """

    size: int
    inode: int
    modified: float
    is_regular: bool = True


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended.

    :param code: its exit code; 127 where there is no such program, as in a shell; negative: the signal that ended it.
    :param output: what it wrote, stdout and stderr together: the last 8 kB of it.
    """

    code: int
    output: str


@dataclass(frozen=True, slots=True)
class MachineAddress:
    """Which machine. Without arguments this host, on which the triggerer runs.

    :param ssh_conn_id: an Airflow connection of the type SSH; None: this host.
    :param remote_host: replaces the connection's host.
    :param connect_timeout: seconds to connect and log in; None: the connection's ``conn_timeout``, or 10. Of those who
        share a connection, the first one's is used.
    :param command_timeout: seconds that each request other than :meth:`Machine.run` may take; None: the connection's
        ``cmd_timeout``, or 30.
    :param command_prefix: what the account's shell does before each command, as ``source /opt/venv/bin/activate``. It
        is seen in the remote list of processes: secrets belong into ``environment``.
    :param environment: of remote commands, in pairs of name and value. It travels on their standard input.
    :raises InputError: one of the others is given without ``ssh_conn_id``, or a name can be no variable.
    """

    ssh_conn_id: str | None = None
    remote_host: str | None = None
    connect_timeout: float | None = None
    command_timeout: float | None = None
    command_prefix: str = ""
    environment: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Check the parameters."""
        if self.ssh_conn_id is None and (self.remote_host or self.command_prefix or self.environment):
            raise InputError(
                "remote_host, command_prefix and environment are for a machine that is reached by SSH: give "
                "ssh_conn_id, or leave them out"
            )
        for name, value in self.environment:
            if not (name.isascii() and name.isidentifier()):
                raise InputError(
                    f"environment has the name {name!r}; a variable's has letters, digits and _ only"
                )
            if "\0" in value:
                raise InputError(f"environment[{name!r}] holds a zero character, which no variable can")


class Machine(Protocol):
    """A machine, and what can be done on it."""

    @property
    def name(self) -> str:
        """For messages: ``this host (web-3)`` or ``airflow@web-3:22``. Holds no secret."""
        ...

    async def identity(self) -> Identity:
        """Return which machine it is. Asked anew each time: behind one name there may be another machine tomorrow."""
        ...

    async def make_directory(self, path: Path) -> None:
        """Make a directory that nobody else writes to, with its parents. Those that are made have mode 0700.

        :raises MachineRefused: it is there as a link or a file, it is another user's, its group or others may write to
            it, or somebody else could put another one into its place.
        """
        ...

    async def check_directory(self, path: Path) -> bool:
        """Return whether there is a directory that nobody else writes to; False when nothing is there.

        Where it is, it stays the one that is ours. Where nothing is, anything may be a moment later.

        :raises MachineRefused: as :meth:`make_directory`.
        """
        ...

    async def write(self, path: Path, data: bytes) -> None:
        """Replace a file, at once and wholly; its mode is 0600 from its first byte. Its directory is there.

        A link at this place is replaced, and not followed.
        """
        ...

    async def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        """Return a part of a file; None when there is no such file.

        What is no regular file is refused on this host. Over SSH reading a pipe takes until its time is over.

        :param offset: in bytes; beyond the end there is b"".
        :param length: at most so many bytes; None: to its end.
        """
        ...

    async def status(self, *paths: Path, inodes: bool = False) -> list[FileStatus | None]:
        """Return what each of these files is now; None for one that is not there. They are asked for together.

        :param inodes: tell them too. That is free on this host; SFTP has none, so over SSH it takes a command (0.1 s),
            and inode is 0 where the machine has no ``stat`` that tells them.
        """
        ...

    async def remove(self, path: Path) -> None:
        """Remove a file or a whole tree, never through a link. It is fine when nothing is there."""
        ...

    async def run(self, arguments: Sequence[str], *, timeout: float, stdin: bytes = b"") -> CommandResult:
        """Run a command in the home directory, in a session of its own, and wait for its end.

        A daemon that it leaves behind goes on. The command's own arguments are seen by all users of the machine.

        :param arguments: the program, by its path or looked for in PATH, and its arguments; no shell sees them.
        :param timeout: in seconds; after it the command is killed (over SSH: if it can still be told), and
            MachineUnavailable raised.
        :param stdin: what it reads; nothing secret is seen in it.
        """
        ...

    async def signal(self, pid: int, name: str) -> bool:
        """Send a signal to a process; return False when there is no such process.

        :param name: as TERM or KILL.
        """
        ...

    async def command_of(self, pid: int) -> tuple[str, ...] | None:
        """Return with which program and arguments a process runs; None when there is none, or only its remains.

        A process id is used again: compare this before sending it a signal.
        """
        ...

    async def socket(self, path: Path) -> Path:
        """Return the path of a Unix socket on *this* host that reaches a Unix socket on the machine.

        It is good for as long as the machine is used, whether or not somebody listens on the other one yet, and
        through a loss of the SSH connection. A connection to it is closed at once while the other one cannot be
        reached.
        """
        ...
