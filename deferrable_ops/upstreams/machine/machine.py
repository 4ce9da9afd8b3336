"""The interface to a machine on which a supervisord runs: files, commands and sockets of the machine.

``use_machine(MachineAddress())`` in ``upstreams/open_machine.py`` opens the local host (``machine/local.py``). With an
``ssh_conn_id``, ``use_machine`` opens the machine of this Airflow connection (``ssh/machine.py``). All callers on an
event loop share one SSH connection. The SSH connection is opened on first use, not when ``use_machine`` is entered. A
lost SSH connection is opened again.

All paths are absolute paths on the machine. Every method can raise three errors:

- MachineUnavailable: the machine cannot be reached at the moment, or the operation took too long. The operation may
  have been carried out. Every method can be repeated safely.
- MachineRefused: the login, the host key or a permission was refused. A retry would be refused, too. The error message
  says how to correct the problem.
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
"""The library keeps only this number of bytes from the end of a command's output."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Identifies a machine, its current boot, and the account that this library uses on the machine.

    :param host: host name, as ``uname -n`` prints it.
    :param boot_id: Linux's boot id, which changes with each boot of the machine. The value is "" if the operating
        system has no boot id.
    :param user: user name of the account that the library uses.
    :param uid: user id (number) of the account that the library uses.
    """

    host: str
    boot_id: str
    user: str
    uid: int


@dataclass(frozen=True, slots=True)
class FileStatus:
    """The status of a file. If the path is a link, this is the status of the link's target.

    :param size: size of the file in bytes.
    :param inode: inode of the file. The value is 0 if the inode was not requested; see :meth:`Machine.status`.
    :param modified: modification time of the file in seconds since 1970, on the machine's clock. Over SSH, the time has
        no fractions of a second.
    :param is_regular: whether the path is a regular file, and not a directory, device, socket or pipe.
    """

    size: int
    inode: int
    modified: float
    is_regular: bool = True


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The result of a command that has ended.

    :param code: exit code of the command. As in a shell, the code 127 means that the program was not found. A negative
        code means that a signal ended the command; for example, -9 means signal 9.
    :param output: the last 8 kB of stdout and stderr combined.
    """

    code: int
    output: str


@dataclass(frozen=True, slots=True)
class MachineAddress:
    """The address of a machine. Without arguments, the address means the host that runs the triggerer.

    :param ssh_conn_id: id of an Airflow connection of type SSH. If ``ssh_conn_id`` is None, the machine is the local
        host.
    :param remote_host: a host name or address that replaces the Airflow connection's host.
    :param connect_timeout: timeout for connecting and logging in, in seconds. The default is the Airflow connection's
        ``conn_timeout``, or 10 s. If several callers share an SSH connection, the first caller's timeout applies.
    :param command_timeout: timeout of each request except :meth:`Machine.run`, in seconds. The default is the Airflow
        connection's ``cmd_timeout``, or 30 s.
    :param command_prefix: shell command that runs before each command, for example ``source /opt/venv/bin/activate``.
        All users of the machine can see the prefix in the process list, so put secrets into ``environment`` instead.
    :param environment: environment variables of remote commands, as pairs of name and value. The library sends these
        variables on the commands' standard input.
    :raises InputError: if another argument is given without ``ssh_conn_id``, or ``environment`` contains an invalid
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
                "remote_host, command_prefix and environment are allowed only for a machine that is reached over SSH; "
                "give ssh_conn_id, or remove these fields"
            )
        for name, value in self.environment:
            if not (name.isascii() and name.isidentifier()):
                raise InputError(f"environment has the name {name!r}; use only letters, digits and '_'")
            if "\0" in value:
                raise InputError(
                    f"environment[{name!r}] contains a null character, which is not allowed in environment variables"
                )


class Machine(Protocol):
    """A machine on which a supervisord runs, and the operations on this machine."""

    @property
    def name(self) -> str:
        """The machine's name in messages, such as ``this host (web-3)`` or ``airflow@web-3:22``.

        The name contains no secret.
        """
        ...

    async def identity(self) -> Identity:
        """Return the identity of the machine.

        The identity is read again after a reconnect, which may reach another machine.
        """
        ...

    async def make_directory(self, path: Path) -> None:
        """Create a directory and its missing parents with mode 0700: only the library's account can write to them.

        Existing directories are checked, but not changed.

        :raises MachineRefused: if the path is a link or a file, the directory belongs to another user, other users can
            write to the directory, or another user could replace the directory or a parent.
        """
        ...

    async def check_directory(self, path: Path) -> bool:
        """Return True if the directory exists and only the library's account can write to it.

        Return False if the directory does not exist. The result True stays valid, because other users cannot replace
        the directory. (Root and the groups of the directory's parents are trusted.) The result False is outdated if
        another process creates the directory.

        :raises MachineRefused: if other users could write to the directory or replace it, as for
            :meth:`make_directory`.
        """
        ...

    async def write(self, path: Path, data: bytes) -> None:
        """Replace a file atomically.

        The new file has mode 0600 as soon as it exists. The file's directory must exist. If the path is a link, the new
        file replaces the link, not the link's target.
        """
        ...

    async def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        """Return a part of a file, or None if the file does not exist.

        On the local host, only regular files can be read. Over SSH, reading a pipe blocks until the timeout.

        :param offset: number of bytes to skip at the beginning of the file. If `offset` is not below the file's size,
            the result is b"".
        :param length: maximum number of bytes to return. If `length` is None, the part ends at the end of the file.
        """
        ...

    async def status(self, *paths: Path, inodes: bool = False) -> list[FileStatus | None]:
        """Return the status of each file, or None for a file that does not exist. All files need only one request.

        :param inodes: whether to return inodes. On the local host, inodes need no additional time. SFTP does not
            transfer inodes, so over SSH a command reads them, which takes 0.1 s. If the machine has no suitable
            ``stat`` program, the inode is 0.
        """
        ...

    async def remove(self, path: Path) -> None:
        """Remove a file or a directory tree without following links. Do nothing if the path does not exist."""
        ...

    async def run(self, arguments: Sequence[str], *, timeout: float, stdin: bytes = b"") -> CommandResult:
        """Run a command in the account's home directory, in a new session, and wait until the command ends.

        A daemon that the command started keeps running after the command. All users of the machine can see the
        command's arguments.

        :param arguments: the program, as a path or as a name in PATH, and the program's arguments. No shell interprets
            the arguments.
        :param timeout: timeout of the command in seconds. After the timeout, the method kills the command and raises
            MachineUnavailable. Over SSH, the method can kill the command only if the SSH connection still works.
        :param stdin: the standard input of the command. Use `stdin` for secrets, because other users cannot see it.
        """
        ...

    async def signal(self, pid: int, name: str) -> bool:
        """Send a signal to a process. Return False if the process does not exist.

        :param name: name of the signal to send, such as TERM or KILL.
        """
        ...

    async def command_of(self, pid: int) -> tuple[str, ...] | None:
        """Return the program and arguments of a process.

        Return None if the process does not exist or is a zombie. The operating system reuses process ids, so compare
        the program before you send a signal.
        """
        ...

    async def socket(self, path: Path) -> Path:
        """Return the path of a Unix socket on the *local* host.

        Connections to the local socket are forwarded to a Unix socket on the machine. The local socket exists while the
        machine is in use, even if no process listens on the remote socket or the SSH connection was lost. While the
        remote socket cannot be reached, connections to the local socket are closed immediately.
        """
        ...
