"""The class :class:`Machine`: operations with files, commands and sockets on a machine on which a supervisord
runs.

``use_machine(MachineAddress())`` in ``upstreams/open_machine.py`` opens the local host (``machine/local.py``).
``use_machine(MachineAddress(ssh_conn_id=...))`` opens the machine to which this Airflow connection leads
(``ssh/machine.py``). All callers on an event loop that use the same address share one SSH connection. The SSH
connection is opened when the first method is called, and not when the ``with`` block of ``use_machine`` begins. If the
SSH connection is lost, the next method call opens a new SSH connection.

All paths are absolute paths on the machine. Every method can raise three errors:

- MachineUnavailable: the machine cannot be reached at the moment, or the operation took too long. After this error, it
  is unknown whether the operation was carried out. If a method raises this error, the caller can call the method again
  without harm.
- MachineRefused: the machine refused the login or the operation, or its host key was not accepted. A retry would fail
  for the same reason. The error message shows how to correct the problem.
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
    """The identity of a machine: its name, its current boot, and the account that this library uses on the machine.

    :param host: host name of the machine, as ``uname -n`` prints it.
    :param boot_id: Linux's boot id, which changes with each boot of the machine; "" if the operating system has no boot
        id.
    :param user: user name of the account that the library uses.
    :param uid: user id, a number, of the account that the library uses.
    """

    host: str
    boot_id: str
    user: str
    uid: int


@dataclass(frozen=True, slots=True)
class FileStatus:
    """The status of a file. If the path is a symbolic link, this is the status of the file to which the link leads.

    :param size: size of the file in bytes.
    :param inode: inode number of the file; 0 if no inode number was requested (see the argument `inodes` of
        :meth:`Machine.status`).
    :param modified: modification time of the file, in seconds since 1970 according to the machine's clock. For a
        machine over SSH, this is a whole number of seconds.
    :param is_regular: whether the path is a regular file; False for a directory, a device, a socket or a pipe.
    """

    size: int
    inode: int
    modified: float
    is_regular: bool = True


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The result of a command that has ended.

    :param code: exit code of the command. As in a shell, the code 127 means that the program was not found. A negative
        code means that a signal ended the command; for example, -9 stands for the signal 9.
    :param output: the last 8 kB of what the command wrote to stdout and stderr.
    """

    code: int
    output: str


@dataclass(frozen=True, slots=True)
class MachineAddress:
    """The address of a machine on which a supervisord runs. Without arguments, this is the address of the host on which
    the triggerer runs.

    :param ssh_conn_id: id of an Airflow connection of type SSH. If ``ssh_conn_id`` is None, the machine is the local
        host.
    :param remote_host: a host name or address that replaces the Airflow connection's host.
    :param connect_timeout: timeout in seconds for opening the SSH connection, including the login. If `connect_timeout`
        is None, the Airflow connection's ``conn_timeout`` applies. Without ``conn_timeout``, the timeout is 10 s. If
        several callers share an SSH connection, the timeout of the first caller applies.
    :param command_timeout: timeout in seconds of each request to the machine, except requests by :meth:`Machine.run`.
        If `command_timeout` is None, the Airflow connection's ``cmd_timeout`` applies. Without ``cmd_timeout``, the
        timeout is 30 s.
    :param command_prefix: a shell command that runs before each command, for example ``source /opt/venv/bin/activate``.
        All users of the machine can see this prefix in the list of processes, so put secrets into ``environment``
        instead.
    :param environment: environment variables for the remote commands, as pairs of a name and a value. The library sends
        these variables on the standard input of each command, so other users cannot see them.
    :raises InputError: if an argument is given although ``ssh_conn_id`` is None, or if ``environment`` contains an
        invalid name or value.
    """

    ssh_conn_id: str | None = None
    remote_host: str | None = None
    connect_timeout: float | None = None
    command_timeout: float | None = None
    command_prefix: str = ""
    environment: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Check the fields of the address."""
        if self.ssh_conn_id is None and (self.remote_host or self.command_prefix or self.environment):
            raise InputError(
                "remote_host, command_prefix and environment are allowed only for a machine that is reached over SSH; "
                "give ssh_conn_id, or remove these fields"
            )
        for name, value in self.environment:
            if not (name.isascii() and name.isidentifier()):
                raise InputError(
                    f"environment has the name {name!r}; use letters, digits and '_', and no digit at the beginning"
                )
            if "\0" in value:
                raise InputError(
                    f"environment[{name!r}] contains a null character, which no environment variable may contain; "
                    "remove the character"
                )


class Machine(Protocol):
    """A machine on which a supervisord runs, and the operations on this machine."""

    @property
    def name(self) -> str:
        """The machine's name in log lines and errors, such as ``this host (web-3)`` or ``airflow@web-3:22``.

        The machine's name contains no secret.
        """
        ...

    async def identity(self) -> Identity:
        """Return the identity of the machine.

        The identity is read again after a new SSH connection was opened, because the new connection may lead to another
        machine.
        """
        ...

    async def make_directory(self, path: Path) -> None:
        """Create a directory and its missing parents with mode 0700, so that only the library's account can use these
        directories.

        A directory that already exists is checked, but not changed.

        :raises MachineRefused: if the path is a link or a file; if another user owns the directory or can write to it;
            or if another user could replace the directory or one of its parents.
        """
        ...

    async def check_directory(self, path: Path) -> bool:
        """Return True if the directory exists and only the library's account can write to it.

        Return False if the directory does not exist. A result of True stays correct, because other users cannot replace
        the directory. (The method trusts the user root and the groups that own the directory's parents.) After a result
        of False, another process may create the directory at any time.

        :raises MachineRefused: if another user can write to the directory or could replace it; see
            :meth:`make_directory`.
        """
        ...

    async def write(self, path: Path, data: bytes) -> None:
        """Replace a file atomically.

        The new file has mode 0600 as soon as it exists. The file's directory must exist. If the path is a symbolic
        link, the new file replaces the link, and the file to which the link leads is not changed.
        """
        ...

    async def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        """Return the bytes of a part of a file, or None if the file does not exist.

        Only regular files can be read.

        :param offset: number of bytes to skip at the beginning of the file. If `offset` is equal to or greater than the
            size of the file, the result is b"".
        :param length: maximum number of bytes to return; the result is shorter if the file ends earlier. If `length` is
            None, the result contains all bytes up to the end of the file.
        """
        ...

    async def status(self, *paths: Path, inodes: bool = False) -> list[FileStatus | None]:
        """Return the status of each given file, in the order of `paths`. The status is None for a file that does not
        exist. Over SSH, one command reads the status of all files.

        :param inodes: whether the caller needs the inode numbers. If False, a machine may return 0 as each inode
            number.
        """
        ...

    async def free_space(self, *paths: Path) -> list[int | None]:
        """Return how many bytes an account without special rights can still write to the file system of each given file
        or directory, in the order of `paths`. An item of the list is None if the number of bytes cannot be determined.
        Over SSH, one command reads all numbers.
        """
        ...

    async def remove(self, path: Path) -> None:
        """Remove a file, or a directory with all its contents. A symbolic link is removed, but not the file to which
        the link leads. If the path does not exist, do nothing.
        """
        ...

    async def run(self, arguments: Sequence[str], *, timeout: float, stdin: bytes = b"") -> CommandResult:
        """Run a command in a new session, in the home directory of the library's account, and wait until the command
        ends.

        If the command has started a daemon, this daemon keeps running after the command has ended. All users of the
        machine can see the arguments of the command.

        :param arguments: the program and its arguments. The program is a path, or a name that is searched in PATH. The
            arguments are not interpreted by a shell.
        :param timeout: timeout of the command in seconds. After this time, the method kills the command and raises
            MachineUnavailable. Over SSH, the command can be killed only while the SSH connection works; otherwise the
            command keeps running.
        :param stdin: the bytes that the command reads from its standard input. Use `stdin` and not `arguments` for
            secrets, because other users cannot see `stdin`.
        """
        ...

    async def signal(self, pid: int, name: str) -> bool:
        """Send a signal to a process. Return False if the process does not exist.

        :param name: name of the signal to send, such as TERM or KILL.
        """
        ...

    async def command_of(self, pid: int) -> tuple[str, ...] | None:
        """Return the program and the arguments with which a process was started.

        Return None if the process does not exist or is a zombie. Before you send a signal to a process id, compare the
        program: the operating system may have given the id to another process.
        """
        ...

    async def socket(self, path: Path) -> Path:
        """Return the path of a Unix socket on the *local* host, which is connected to a Unix socket on the machine.

        For a machine over SSH, the library forwards each connection from the local socket to the Unix socket on the
        machine. The local socket exists until the ``with`` block of the machine ends. While no process listens on the
        remote socket, or while the SSH connection is lost, a connection to the local socket is closed immediately.
        """
        ...
