"""The interface to a machine that runs a supervisord: its files, commands and sockets.

``use_machine(MachineAddress())`` in ``upstreams/open_machine.py`` opens the local host (``machine/local.py``). With an
``ssh_conn_id``, it opens the machine of this Airflow connection (``ssh/machine.py``). All users on an event loop share
one SSH connection. The connection is opened on first use, not on entry. If it is lost, it is opened again.

All paths are absolute paths on the machine. Every method can raise three errors:

- MachineUnavailable: the machine cannot be reached now, or the operation took too long. The operation may have been
  carried out. Every method can be repeated safely.
- MachineRefused: the login, the host key or a permission was refused. A retry would be refused, too. The message names
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
"""The library keeps only the last part of a command's output. This is the length of that part in bytes."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Identifies a machine, its current boot, and the account that this library uses on the machine.

    :param host: host name, as ``uname -n`` prints it.
    :param boot_id: id that changes with each boot. Linux has a boot id. "" if the operating system has none.
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

    :param size: size in bytes.
    :param inode: 0 if the inode was not requested; see :meth:`Machine.status`.
    :param modified: modification time in seconds since 1970, on the machine's clock. Over SSH, in whole seconds.
    :param is_regular: whether this is a regular file, and not a directory, device, socket or pipe.
    """

    size: int
    inode: int
    modified: float
    is_regular: bool = True


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The result of a command.

    :param code: exit code. As in a shell, 127 means that the program was not found. A negative code means that a signal
        ended the command: -9 stands for signal 9.
    :param output: the last 8 kB of stdout and stderr combined.
    """

    code: int
    output: str


@dataclass(frozen=True, slots=True)
class MachineAddress:
    """The address of a machine. Without arguments, it is the address of the host that runs the triggerer.

    :param ssh_conn_id: id of an Airflow connection of type SSH; None: the local host.
    :param remote_host: replaces the connection's host.
    :param connect_timeout: timeout for connecting and logging in, in seconds; None: the connection's ``conn_timeout``,
        or 10. If several users share a connection, the value of the first user applies.
    :param command_timeout: timeout of each request other than :meth:`Machine.run`, in seconds; None: the connection's
        ``cmd_timeout``, or 30.
    :param command_prefix: shell command that runs before each command, for example ``source /opt/venv/bin/activate``.
        The remote process list shows it, so put secrets into ``environment`` instead.
    :param environment: environment variables of remote commands, as pairs of name and value. They are sent on the
        commands' standard input.
    :raises InputError: an argument for SSH is given without ``ssh_conn_id``, or ``environment`` contains an invalid
        name or value.
    """

    ssh_conn_id: str | None = None
    remote_host: str | None = None
    connect_timeout: float | None = None
    command_timeout: float | None = None
    command_prefix: str = ""
    environment: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.ssh_conn_id is None and (self.remote_host or self.command_prefix or self.environment):
            raise InputError(
                "remote_host, command_prefix and environment are only for a machine over SSH; give ssh_conn_id, "
                "or remove them"
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
        """Name for messages: ``this host (web-3)`` or ``airflow@web-3:22``. It contains no secret."""
        ...

    async def identity(self) -> Identity:
        """Return the identity of the machine. After a reconnect, it is read again: this may be another machine."""
        ...

    async def make_directory(self, path: Path) -> None:
        """Create a directory and its missing parents with mode 0700. This account owns them, and only it can write.

        Existing directories are checked, but not changed.

        :raises MachineRefused: the path is a link or a file; or the directory belongs to another user; or its group or
            other users may write to it; or another user could replace it or one of its parents.
        """
        ...

    async def check_directory(self, path: Path) -> bool:
        """Return True if the directory exists and only this account can write to it; False if it does not exist.

        The result True stays valid, because other users cannot replace the directory. (Root and the groups of its
        parents are trusted.) The result False may be outdated a moment later.

        :raises MachineRefused: for the same reasons as :meth:`make_directory`.
        """
        ...

    async def write(self, path: Path, data: bytes) -> None:
        """Replace a file atomically. The new file has mode 0600 from the beginning. The file's directory must exist.

        If the path is a link, the link itself is replaced.
        """
        ...

    async def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        """Return a part of a file; None if the file does not exist.

        On the local host, only regular files can be read. Over SSH, reading a pipe blocks until the timeout.

        :param offset: start of the part, in bytes. At or after the end of the file, the result is b"".
        :param length: maximum number of bytes; None: up to the end of the file.
        """
        ...

    async def status(self, *paths: Path, inodes: bool = False) -> list[FileStatus | None]:
        """Return the status of each file, in one request; None for a file that does not exist.

        :param inodes: whether to include inodes. On the local host, they need no additional time. SFTP does not
            transfer inodes, so over SSH a command is needed (0.1 s). If the machine has no suitable ``stat`` program,
            the inode is 0.
        """
        ...

    async def remove(self, path: Path) -> None:
        """Remove a file or a directory tree without following links. Do nothing if the path does not exist."""
        ...

    async def run(self, arguments: Sequence[str], *, timeout: float, stdin: bytes = b"") -> CommandResult:
        """Run a command in the home directory, in a new session, and wait for its end.

        A daemon that the command has started keeps running. All users of the machine can see the arguments.

        :param arguments: the program, as a path or as a name in PATH, and its arguments. No shell interprets them.
        :param timeout: timeout in seconds. After the timeout, the command is killed, and MachineUnavailable is raised.
            Over SSH, the command can be killed only if the connection still works.
        :param stdin: the standard input of the command. Other users cannot see it, so use it for secrets.
        """
        ...

    async def signal(self, pid: int, name: str) -> bool:
        """Send a signal to a process; return False if the process does not exist.

        :param name: name of the signal, such as TERM or KILL.
        """
        ...

    async def command_of(self, pid: int) -> tuple[str, ...] | None:
        """Return the program and arguments of a process; None if the process does not exist or is a zombie.

        The system reuses process ids, so compare the command before you send a signal.
        """
        ...

    async def socket(self, path: Path) -> Path:
        """Return the path of a Unix socket on the *local* host that leads to a Unix socket on the machine.

        The path is valid while the machine is in use. It is valid even before a process listens on the remote socket,
        and after the SSH connection was lost. While the remote socket cannot be reached, connections to the local
        socket are closed immediately.
        """
        ...
