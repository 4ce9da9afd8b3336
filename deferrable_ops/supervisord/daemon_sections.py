"""The configuration sections of supervisord itself, its HTTP servers, its clients, groups and plugins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from deferrable_ops.exceptions import InputError
from deferrable_ops.supervisord.rendering import IN_DAEMON, IN_SERVER, render_value
from deferrable_ops.supervisord.section import Section
from deferrable_ops.supervisord.values import (
    ByteSize,
    FilePath,
    HostPort,
    LogLevel,
    Names,
    Octal,
    Secret,
    User,
    Variables,
    Words,
    host_of,
    is_loopback,
)

LONGEST_SOCKET_PATH = 95
"""The longest path of a Unix socket, in bytes.

Linux allows 107 bytes, but supervisord first creates the socket under a longer path that ends with supervisord's
process id.
"""


class SupervisordConfiguration(Section):
    """``[supervisord]``: the daemon."""

    _header = "supervisord"
    _expressions_of: ClassVar = {"environment": IN_DAEMON | {"host_node_name"}}
    _expanded_twice = frozenset({"environment"})

    logfile: FilePath = FilePath("supervisord.log")
    logfile_maxbytes: ByteSize = "50MB"
    logfile_backups: int = Field(default=10, ge=0)
    loglevel: LogLevel = "info"
    pidfile: FilePath = FilePath("supervisord.pid")
    umask: Octal = "022"
    nodaemon: bool = False
    silent: bool = False
    minfds: int = Field(default=1024, ge=1)
    minprocs: int = Field(default=200, ge=1)
    nocleanup: bool = False
    childlogdir: FilePath | None = None
    user: User | None = None
    directory: FilePath | None = None
    strip_ansi: bool = False
    environment: Variables = Field(default_factory=dict, repr=False)
    identifier: str = Field(default="supervisor", min_length=1)


class _Server(Section):
    """An HTTP server of supervisord, with the user name and password that its clients must send.

    :raises InputError: if only one of ``username`` and ``password`` is given.
    """

    username: User | None = None
    password: Secret | None = None

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        check_credentials(self.username, self.password)
        return self


class UnixHttpServerConfiguration(_Server):
    """``[unix_http_server]``: supervisord's Unix socket. By default, only the operating system user of supervisord can
    open the socket.
    """

    _header = "unix_http_server"
    _expressions = IN_SERVER
    _expressions_of: ClassVar = {"file": IN_DAEMON}

    file: FilePath
    chmod: Octal = "0700"
    chown: User | None = None

    @model_validator(mode="after")
    def _check_path_length(self) -> Self:
        length = len(str(self.file).encode())
        if length > LONGEST_SOCKET_PATH:
            raise InputError(
                f"file={str(self.file)!r} has {length} bytes, but the path of a socket must not exceed "
                f"{LONGEST_SOCKET_PATH} bytes; give a shorter path"
            )
        return self


class InetHttpServerConfiguration(_Server):
    """``[inet_http_server]``: supervisord's TCP port. A client that connects to this port can run any command as the
    operating system user of supervisord.

    :raises InputError: if other machines can connect to the TCP port, and no password is set.
    """

    _header = "inet_http_server"
    _expressions = IN_SERVER

    port: HostPort

    @model_validator(mode="after")
    def _check_protected(self) -> Self:
        if self.password is None and not is_loopback(host_of(self.port)):
            raise InputError(
                f"port={self.port!r} without a password lets anyone who can reach the port run commands; set "
                "username and password, bind to 127.0.0.1, or remove the server and use the Unix socket"
            )
        return self


class SupervisorctlConfiguration(Section):
    """``[supervisorctl]``: how the command ``supervisorctl`` connects to supervisord."""

    _header = "supervisorctl"
    _expressions = IN_SERVER
    _expressions_of: ClassVar = {"serverurl": IN_DAEMON, "history_file": IN_DAEMON}

    serverurl: Annotated[str, Field(pattern="^(https?|unix)://.")] = "http://localhost:9001"
    username: User | None = None
    password: Secret | None = None
    prompt: str = "supervisor"
    history_file: FilePath | None = None


class GroupConfiguration(Section):
    """``[group:NAME]``: programs that are started and stopped together."""

    _header = "group"

    programs: Names
    priority: int = 999


class IncludeConfiguration(Section):
    """``[include]``: additional configuration files.

    :param files: paths or glob patterns of further configuration files. A path or pattern must not contain a space. A
        relative path is relative to the configuration file that contains this section.
    """

    _header = "include"
    _expressions = IN_DAEMON | {"host_node_name"}

    files: Annotated[Words, Field(min_length=1)]

    def _render_field(self, header: str, name: str, value: Any) -> str:
        for file in value:
            if len(file.split()) != 1:
                raise InputError(
                    f"{name} in [{header}] contains the path {file!r}, which supervisord splits at the space; "
                    "use a path without spaces"
                )
        return super()._render_field(header, name, " ".join(value))


class RpcInterfaceConfiguration(Section):
    """``[rpcinterface:NAME]``: a plugin that serves XML-RPC methods.

    :param kwargs: further options of the plugin. supervisord passes them to the plugin's factory as strings.
    """

    _header = "rpcinterface"
    _expressions = IN_SERVER
    _option: ClassVar[str] = "supervisor.rpcinterface_factory"

    rpcinterface_factory: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")] = (
        "supervisor.rpcinterface:make_main_rpcinterface"
    )
    kwargs: Mapping[str, str | bool | int | float] = Field(default_factory=dict, repr=False)

    def _lines(self, header: str) -> Iterator[tuple[str, str]]:
        yield self._option, self._render_field(header, self._option, self.rpcinterface_factory)
        for name, value in self.kwargs.items():
            if name == self._option or not name.isidentifier() or not name.isascii() or name != name.lower():
                raise InputError(
                    f"kwargs in [{header}] contains {name!r}; use only lowercase letters, digits and '_', because "
                    "supervisord's parser does not preserve other names"
                )
            text = render_value(f"{name} in [{header}]", str(value), self._expressions)
            yield name, text


def check_credentials(username: str | None, password: object | None) -> None:
    """Check that either both ``username`` and ``password`` are given, or neither.

    :raises InputError: if only one of ``username`` and ``password`` is given. With only one of them, supervisord would
        not start.
    """
    if (username is None) != (password is None):
        missing = "username" if username is None else "password"
        raise InputError(f"{missing} is missing: give both username and password, or neither")
