"""The interface to a machine on which a supervisord runs: its files, commands and sockets.

``use_machine(MachineAddress())`` in ``upstreams/open_machine.py`` is the local host (``machine/local.py``). With an
``ssh_conn_id`` it is the machine of that Airflow connection (``ssh/machine.py``). All users of an event loop share one
SSH connection. It is opened on first use, not on entry, and reopened after it was lost.

All paths are absolute paths on the machine. Every method raises three errors:

- MachineUnavailable: the machine cannot be reached now, or took too long. The operation may have been carried out, and
  may be repeated: this holds for every method here.
- MachineRefused: the login, the host key or a permission was refused; a retry would be refused, too. The message names
  the fix.
- ConfigurationError: the Airflow connection is missing or malformed, or asyncssh is not installed.

No error message contains a secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from deferrable_ops.exceptions import InputError

OUTPUT_KEPT: Final = 8192
"""The number of bytes of a command's output that are kept: the last ones."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of a machine, of its current boot, and of the account that is used on it.

    :param host: host name, as printed by ``uname -n``.
    :param boot_id: changes with each boot; "" if the operating system does not provide it (Linux does).
    :param user: name of the account.
    :param uid: user id of the account.
    """

    host: str
    boot_id: str
    user: str
    uid: int


@dataclass(frozen=True, slots=True)
class FileStatus:
    """The status of a file. Links are followed.

    :param size: in bytes.
    :param inode: 0 if it was not requested; see :meth:`Machine.status`.
    :param modified: seconds since 1970, by the machine's clock; whole seconds over SSH.
    :param is_regular: whether it is a regular file: not a directory, device, socket or pipe.
    """

    size: int
    inode: int
    modified: float
    is_regular: bool = True


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The result of a command.

    :param code: exit code; 127: program not found, as in a shell; negative: number of the signal that ended it.
    :param output: the last 8 kB of its stdout and stderr, combined.
    """

    code: int
    output: str


@dataclass(frozen=True, slots=True)
class MachineAddress:
    """The address of a machine. Without arguments: the host on which the triggerer runs.

    :param ssh_conn_id: id of an Airflow connection of type SSH; None: the local host.
    :param remote_host: replaces the connection's host.
    :param connect_timeout: timeout for connecting and logging in, in seconds; None: the connection's ``conn_timeout``,
        or 10. If several users share a connection, the value of the first one applies.
    :param command_timeout: timeout of each request other than :meth:`Machine.run`, in seconds; None: the connection's
        ``cmd_timeout``, or 30.
    :param command_prefix: shell command that runs before each command, as ``source /opt/venv/bin/activate``. It is
        visible in the remote process list: put secrets into ``environment``.
    :param environment: environment variables of remote commands, as pairs of name and value. They are sent on the
        commands' standard input.
    :raises InputError: another argument is given without ``ssh_conn_id``, or a name is not a valid variable name.
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
                "remote_host, command_prefix and environment require a machine that is reached over SSH: give "
                "ssh_conn_id, or remove them"
            )
        for name, value in self.environment:
            if not (name.isascii() and name.isidentifier()):
                raise InputError(f"environment has the name {name!r}; use only letters, digits and '_'")
            if "\0" in value:
                raise InputError(
                    f"environment[{name!r}] contains a zero character, which is not allowed in environment variables"
                )


class Machine(Protocol):
    """A machine and the operations on it."""

    @property
    def name(self) -> str:
        """Name for messages: ``this host (web-3)`` or ``airflow@web-3:22``. Contains no secret."""
        ...

    async def identity(self) -> Identity:
        """Return the identity of the machine. Not cached across connections: a host name may later point elsewhere."""
        ...

    async def make_directory(self, path: Path) -> None:
        """Create a directory that only its owner, this account, can write to, and its parents, with mode 0700.

        Existing directories are checked and not changed.

        :raises MachineRefused: the path is a link or a file, the directory belongs to another user, its group or others
            may write to it, or another user could replace it or one of its parents.
        """
        ...

    async def check_directory(self, path: Path) -> bool:
        """Return whether the directory exists and only this account can write to it; False if it does not exist.

        True stays valid: other users cannot replace the directory (root and the groups of its parents are trusted).
        False may be outdated a moment later.

        :raises MachineRefused: the same as :meth:`make_directory`.
        """
        ...

    async def write(self, path: Path, data: bytes) -> None:
        """Replace a file atomically. Its mode is 0600 before the first byte is written. Its directory must exist.

        A link at the path is replaced, not followed.
        """
        ...

    async def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        """Return a part of a file; None if the file does not exist.

        The local host refuses files that are not regular. Over SSH, reading a pipe blocks until the timeout.

        :param offset: in bytes; at or after the end, the result is b"".
        :param length: maximum number of bytes; None: up to the end.
        """
        ...

    async def status(self, *paths: Path, inodes: bool = False) -> list[FileStatus | None]:
        """Return the status of each file, in one request; None for a file that does not exist.

        :param inodes: include inodes. This is free on the local host. SFTP does not transfer inodes, so over SSH it
            takes a command (0.1 s), and the inode is 0 if the machine has no suitable ``stat`` program.
        """
        ...

    async def remove(self, path: Path) -> None:
        """Remove a file or a directory tree without following links. Does nothing if it does not exist."""
        ...

    async def run(self, arguments: Sequence[str], *, timeout: float, stdin: bytes = b"") -> CommandResult:
        """Run a command in the home directory, in a new session, and wait for its end.

        A daemon that the command leaves behind keeps running. The arguments are visible to all users of the machine.

        :param arguments: the program, as a path or as a name in PATH, and its arguments; not interpreted by a shell.
        :param timeout: in seconds. Then the command is killed (over SSH: if the connection still works) and
            MachineUnavailable is raised.
        :param stdin: its standard input, which is not visible to other users: the place for secrets.
        """
        ...

    async def signal(self, pid: int, name: str) -> bool:
        """Send a signal to a process; return False if the process does not exist.

        :param name: such as TERM or KILL.
        """
        ...

    async def command_of(self, pid: int) -> tuple[str, ...] | None:
        """Return the program and arguments of a process; None if it does not exist or is a zombie.

        Process ids are reused: compare the command before sending a signal.
        """
        ...

    async def socket(self, path: Path) -> Path:
        """Return the path of a Unix socket on the *local* host that leads to a Unix socket on the machine.

        The path stays valid while the machine is in use, even before a process listens on the remote socket and across
        a loss of the SSH connection. While the remote socket cannot be reached, connections to the local socket are
        closed immediately.
        """
        ...
