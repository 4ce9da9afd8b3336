"""The configuration of a supervisord that belongs to a DAG: supervisord's own sections, and settings of the DAG's
tasks.
"""

from __future__ import annotations

import inspect
import warnings
from datetime import time, timedelta
from operator import attrgetter
from pathlib import Path
from types import FunctionType
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    FieldSerializationInfo,
    SecretStr,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_serializer,
    model_validator,
)

from deferrable_ops.exceptions import InputError
from deferrable_ops.supervisord.configuration import SupervisorConfiguration
from deferrable_ops.supervisord.control import ControlledDaemon
from deferrable_ops.supervisord.daemon_sections import check_credentials
from deferrable_ops.supervisord.defaults import DEFAULT_NAME, fill_defaults
from deferrable_ops.supervisord.policy import ProgramNotifier, ProgramPolicy, parse_notifiers
from deferrable_ops.supervisord.section import Model
from deferrable_ops.supervisord.values import (
    ExitCodes,
    HostPort,
    Name,
    Secret,
    Signal,
    User,
    host_of,
    is_loopback,
    plain,
)

_Count = Annotated[int, Field(ge=0)]
_Length = Annotated[timedelta, Field(gt=timedelta(0))]
_Pause = Annotated[timedelta, Field(ge=timedelta(0))]
_LIBRARY_PACKAGES: Final = frozenset({"deferrable_ops", "pydantic"})

# A connection to one of these addresses leads to the own machine.
_UNSPECIFIED: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104


def _fields_of(value: Any) -> Any:
    """If the value is a pydantic model of another library with the same field names, return a dict with the fields that
    the user set. Otherwise return the value unchanged.
    """
    return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value


def _time_of_day(value: Any) -> Any:
    """Convert a number of seconds since midnight to a time.

    YAML 1.1 parses the time 23:00:00 as the number 82800.
    """
    if isinstance(value, int) and 0 <= value < 86400:
        return time(value // 3600, value // 60 % 60, value % 60)
    return value


def _path_of_function(value: Any) -> Any:
    return f"{value.__module__}:{value.__qualname__}" if isinstance(value, FunctionType) else value


_FunctionPath = Annotated[str, Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*(\.[^\W\d]\w*)*$")]
# A string such as "PT5M" or "23:30" is a value, and any other string is the path of a function.
_FUNCTION_OR_VALUE: Final = (Field(union_mode="left_to_right"), BeforeValidator(_path_of_function))


def _pool_name(value: Any) -> Any:
    return getattr(value, "pool", value)


def fields_of_hook(hook: Any) -> dict[str, Any]:
    """Return the fields of :class:`SSHOperatorArgs` that an SSHHook of the SSH provider sets: the id of the hook's
    connection, and the hook's host. The hook itself cannot be sent to the triggerer.

    :raises InputError: if the object is not a hook, or if the login is in the hook and not in an Airflow connection.
    """
    found = {name: getattr(hook, name, None) for name in ("ssh_conn_id", "remote_host")}
    given = {name: value for name, value in found.items() if value}
    is_login = any(getattr(hook, name, None) for name in ("password", "key_file", "pkey"))
    if not given or (is_login and "ssh_conn_id" not in given):
        raise InputError(
            "ssh_hook cannot be sent to the triggerer, only the id of its Airflow connection and its host; create an "
            "Airflow connection of type SSH with the login, and give ssh_conn_id instead"
        )
    return given


class AirflowConfiguration(Model):
    """Default values for the fields of all programs, and the address of supervisord's TCP server.

    :param port: address on which supervisord's TCP server listens, such as ``127.0.0.1:9001``, ``*:9001`` or ``9001``.
        If ``port`` is None, only the Unix socket is used. If other machines can connect to this port and no password is
        given, the library issues a Python warning and does not open the port.
    :param startsecs: supervisord counts a program as started after this number of seconds. Set ``startsecs`` to 0 if a
        program may end within one second, or if the task uses the program's exit code.
    :param username: user name of the TCP server; requires ``password``.
    :param host: host name or address by which clients connect to the TCP server.
    :param command_timeout: timeout in seconds of one step of the Supervisor, such as starting the programs. The time
        that the programs need to stop and start is added to this timeout.
    :raises InputError: if only one of ``username`` and ``password`` is given.
    """

    startsecs: _Count = 1
    startretries: _Count | None = None
    exitcodes: ExitCodes = Field(default_factory=lambda: [0])
    stopsignal: Signal = "TERM"
    stopwaitsecs: _Count = 30
    stopasgroup: bool = True
    killasgroup: bool = True
    port: HostPort | None = None
    username: User | None = None
    password: Secret | None = None
    rpcinterface_factory: str = "supervisor.rpcinterface:make_main_rpcinterface"
    local_or_remote: Literal["local", "remote"] = "local"
    host: str = "localhost"
    protocol: Literal["http", "https"] = "http"
    rpcpath: str = "/RPC2"
    command_timeout: int = Field(default=60, gt=0)

    @model_validator(mode="after")
    def _remove_open_port(self) -> Self:
        check_credentials(self.username, self.password)
        if self.port is not None and self.password is None and not is_loopback(host_of(self.port)):
            warnings.warn(
                f"port={self.port!r} without a password would let anyone who can reach the port run "
                "commands, so the port is not opened and only the Unix socket is used. Remove port=, or set "
                "username and password.",
                stacklevel=_user_stacklevel(),
            )
            self.__dict__["port"] = None
        return self


class SSHOperatorArgs(Model):
    """How to connect to the remote machine on which supervisord runs.

    :param ssh_conn_id: id of the Airflow connection of type SSH with which the library logs in to the remote machine.
    :param remote_host: a host name or address that replaces the host in the Airflow connection.
    :param conn_timeout: timeout for opening the SSH connection, in seconds.
    :param cmd_timeout: timeout for one remote command, in seconds.
    :param banner_timeout: how many seconds to wait for the SSH server's banner, its first line of text.
    :param environment: environment variables that are set for the remote commands.
    """

    ssh_conn_id: str | None = None
    remote_host: str | None = None
    conn_timeout: float | None = Field(default=None, gt=0)
    cmd_timeout: float | None = Field(default=None, gt=0)
    banner_timeout: float | None = Field(default=None, gt=0)
    environment: dict[str, str] = Field(default_factory=dict, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _replace_hook(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("ssh_hook") is None:
            return data
        return fields_of_hook(data["ssh_hook"]) | {name: data[name] for name in data if name != "ssh_hook"}


class SupervisorAirflowConfiguration(ControlledDaemon, SupervisorConfiguration):
    """The configuration of a supervisord that belongs to a DAG.

    Fields that the user does not set get default values. By default, ``working_dir`` contains supervisord's files and
    one directory for each program. By default, only the user of supervisord can open the Unix socket, and supervisord
    neither starts nor restarts a program by itself; the tasks start and restart programs. A value that the user sets
    for one program replaces the default value for all programs. You can write and read the fields of
    :class:`AirflowConfiguration` inside the field ``airflow``, or directly in this class.

    :param check_interval: time between two polls of the programs' states. This duration and all other durations in this
        class are a timedelta, or a number of seconds.
    :param check_timeout: how long the task ``check-programs`` watches the programs. After this time, the DAG triggers
        another run of itself, and the programs keep running.
    :param runtime: how long the programs run, counted from the date that ``reference_date`` names; None means no limit.
    :param endtime: time of day at which the programs are stopped; None means that no time of day stops the programs.
        ``runtime`` and ``endtime`` can also be a function of an installed package, or its dotted path. The function
        computes the limit of each DAG run.
    :param maxretrigger: the maximum number of times in a row that the DAG triggers another run of itself. After a DAG
        run that is longer than ``retrigger_reset_after``, the count begins at 0. None means no limit.
    :param retrigger_delay: the pause before the second run that the DAG triggers of itself; 0 means no pauses. Before
        the first such run, there is no pause. Each further pause is twice as long, but at most 10 minutes. The programs
        are restarted after the pause.
    :param retrigger_reset_after: after a DAG run that is longer than this duration, the next retrigger has no pause,
        and the count of retriggers begins at 0.
    :param stop_on_exit: whether the programs and supervisord are stopped at the end of the DAG run. If the DAG triggers
        another run of itself, supervisord and the programs are not stopped.
    :param cleanup: whether to remove ``working_dir`` after supervisord has stopped; requires ``stop_on_exit``.
    :param restart_on_initial: whether the step that starts programs also restarts running programs, in a DAG run that
        the DAG itself did not trigger.
    :param restart_on_retrigger: whether the step that starts programs also restarts running programs, in a DAG run that
        the DAG itself triggered.
    :param forward_logs: whether the task that watches the programs copies the output of the programs to the task's log.
        With ``"file"``, the task copies the output to files beside the task's log.
    :param log_chunk_size: the largest number of bytes that one read of a program's log returns.
    :param pool: name of an Airflow pool, which the tasks of the Supervisor use; None means Airflow's default pool.
    :param drift: what the task does if supervisord runs with a configuration that differs from this one: ``warn`` logs
        a warning, ``apply`` applies this configuration and restarts changed programs, ``fail`` fails the task.
    :param rolling: whether ``drift="apply"`` replaces the changed programs one after another. The next program is
        stopped only after all other programs have started and are ready.
    :param on_program_event: notifiers that the Triggerer calls when a program is in a crash loop, is paused, is given
        up, is restarted or is not ready: an AsyncCallback of Airflow, or a list of these.
    :param policy: what the task ``check-programs`` does when a program ends.
    :param policies: a dict with policies for single programs. Each key is the name of a program. For this program, the
        value replaces ``policy``.
    :raises InputError: if two fields contradict each other, or a program name is unknown.
    """

    airflow: AirflowConfiguration = Field(default_factory=AirflowConfiguration)
    check_interval: _Length = timedelta(seconds=5)
    check_timeout: _Length = timedelta(hours=8)
    runtime: Annotated[_Length | _FunctionPath | None, *_FUNCTION_OR_VALUE] = None
    endtime: Annotated[time | _FunctionPath | None, *_FUNCTION_OR_VALUE, BeforeValidator(_time_of_day)] = None
    maxretrigger: _Count | None = None
    retrigger_delay: _Pause = timedelta(seconds=10)
    retrigger_reset_after: _Pause = timedelta(minutes=10)
    reference_date: Literal["start_date", "logical_date", "data_interval_end"] = "data_interval_end"
    stop_on_exit: bool = True
    cleanup: bool = True
    restart_on_initial: bool = False
    restart_on_retrigger: bool = False
    forward_logs: bool | Literal["file"] = False
    log_chunk_size: int = Field(default=65536, gt=0, le=1048576)
    pool: Annotated[str | None, BeforeValidator(_pool_name)] = None
    drift: Literal["warn", "apply", "fail"] = "warn"
    rolling: bool = False
    on_program_event: Annotated[list[ProgramNotifier], BeforeValidator(parse_notifiers)] = Field(
        default_factory=list
    )
    policy: ProgramPolicy = Field(default_factory=ProgramPolicy)
    policies: dict[Name, ProgramPolicy] = Field(default_factory=dict)

    # The fields of the nested model, as airflow-supervisor has them.
    startsecs = property(attrgetter("airflow.startsecs"))
    startretries = property(attrgetter("airflow.startretries"))
    exitcodes = property(attrgetter("airflow.exitcodes"))
    stopsignal = property(attrgetter("airflow.stopsignal"))
    stopwaitsecs = property(attrgetter("airflow.stopwaitsecs"))
    stopasgroup = property(attrgetter("airflow.stopasgroup"))
    killasgroup = property(attrgetter("airflow.killasgroup"))
    rpcinterface_factory = property(attrgetter("airflow.rpcinterface_factory"))
    local_or_remote = property(attrgetter("airflow.local_or_remote"))
    protocol = property(attrgetter("airflow.protocol"))
    rpcpath = property(attrgetter("airflow.rpcpath"))
    command_timeout = property(attrgetter("airflow.command_timeout"))

    @property
    def host(self) -> str:
        """Host name or address by which clients connect to supervisord's machine."""
        return self.airflow.host

    @property
    def port(self) -> str | None:
        """Address of supervisord's TCP server, such as ``127.0.0.1:9001``; None if there is only the Unix socket."""
        found: str | None = self._of_tcp_server("port")
        return found

    @property
    def username(self) -> str | None:
        """User name of supervisord's TCP server; None if this server needs no login."""
        found: str | None = self._of_tcp_server("username")
        return found

    @property
    def password(self) -> SecretStr | None:
        """Password of supervisord's TCP server; None if this server needs no login."""
        found: SecretStr | None = self._of_tcp_server("password")
        return found

    def _of_tcp_server(self, field: str) -> Any:
        given = getattr(self.airflow, field)
        return getattr(self.inet_http_server, field, None) if given is None else given

    def policy_of(self, program: str) -> ProgramPolicy:
        """Return the policy of this program: its entry in ``policies``, or ``policy`` if there is no entry."""
        return self.policies.get(program, self.policy)

    @property
    def given_fields(self) -> dict[str, Any]:
        """The fields that the user set, without the fields that have default values.

        From these fields, an equal configuration can be built.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return given | ({"config_path": self._given_path} if "config_path" in given else {})

    @property
    def socket_path(self) -> Path:
        """Path of supervisord's Unix socket. Clients connect to this socket."""
        assert self.unix_http_server is not None
        return self.unix_http_server.file

    @property
    def directories(self) -> tuple[Path, ...]:
        """The directories that must exist before supervisord starts; a directory comes before its subdirectories."""
        assert self.working_dir is not None
        own = [path for path in self._paths() if path.is_relative_to(self.working_dir)]
        return tuple(sorted({self.working_dir, *own}))

    def _paths(self) -> list[Path]:
        programs = self.programs.values()
        logs = [path for program in programs for path in (program.stdout_logfile, program.stderr_logfile)]
        files = (
            self.config_path,
            self.socket_path,
            self.supervisord.logfile,
            self.supervisord.pidfile,
            *logs,
        )
        folders = (self.supervisord.childlogdir, *(program.directory for program in programs))
        return [*(file.parent for file in files), *(folder for folder in folders if folder is not None)]

    def _check_rolling(self) -> None:
        if self.drift != "apply":
            raise InputError("rolling=True needs drift='apply'; set drift='apply', or remove rolling")
        # supervisord can only replace a whole group. A program with several processes is a group, too.
        shared = [f"group[{name!r}]" for name, group in self.group.items() if len(group.programs) > 1]
        shared += [f"program[{name!r}]" for name, program in self.programs.items() if program.numprocs > 1]
        if shared:
            raise InputError(
                f"rolling=True cannot replace the processes of {shared[0]} one after another, because supervisord "
                "replaces them together; give each process a program of its own outside of a group, or remove rolling"
            )

    @property
    def _given_path(self) -> Path:
        folder, path = self.working_dir, self.config_path
        return path.relative_to(folder) if folder is not None and path.is_relative_to(folder) else path

    @field_serializer("config_path", mode="wrap")
    def _written_path(
        self, path: Path, write: SerializerFunctionWrapHandler, info: FieldSerializationInfo
    ) -> Any:
        # With exclude_unset, only given fields are written, so do not add the default directory to the given path.
        return write(self._given_path if info.exclude_unset else path)

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, data: Any) -> Any:
        return _nest_fields(data, "airflow", AirflowConfiguration, cls)

    @model_validator(mode="after")
    def _fill_defaults(self, info: ValidationInfo) -> Self:
        unknown = sorted(set(self.policies) - set(self.programs))
        if unknown:
            raise InputError(
                f"policies contains {unknown[0]!r}, which is not the name of a program in the fields program and "
                "fcgiprogram; check the name"
            )
        if self.rolling:
            self._check_rolling()
        self.__dict__.update(fill_defaults(self, (info.context or {}).get(DEFAULT_NAME)))
        for name, program in self.programs.items():
            if program.after and program.autostart:
                raise InputError(
                    f"program[{name!r}] has after= and autostart=True, but with autostart, supervisord starts the "
                    "program without waiting for others; remove one of the two"
                )
        return self


SupervisorConvenienceConfiguration = SupervisorAirflowConfiguration
"""An alias. supervisor-pydantic uses this name for the configuration that can be used outside of a DAG."""


class SupervisorSSHAirflowConfiguration(SupervisorAirflowConfiguration):
    """The configuration of a supervisord on a remote machine, which the library reaches over SSH. All paths in this
    configuration are paths on the remote machine.

    :param command_prefix: a shell command that runs before each remote command, for example
        ``source /opt/venv/bin/activate``.
    :param ssh_operator_args: how to connect to the remote machine. You can also write the fields of
        ``ssh_operator_args`` directly in this class.
    """

    command_prefix: str = ""
    ssh_operator_args: Annotated[SSHOperatorArgs, BeforeValidator(_fields_of)] = Field(
        default_factory=SSHOperatorArgs
    )

    # The fields of the nested model can be read here, because they can also be written here.
    ssh_conn_id = property(attrgetter("ssh_operator_args.ssh_conn_id"))
    remote_host = property(attrgetter("ssh_operator_args.remote_host"))
    conn_timeout = property(attrgetter("ssh_operator_args.conn_timeout"))
    cmd_timeout = property(attrgetter("ssh_operator_args.cmd_timeout"))
    banner_timeout = property(attrgetter("ssh_operator_args.banner_timeout"))
    environment = property(attrgetter("ssh_operator_args.environment"))

    @property
    def host(self) -> str:
        """Host name or address of the remote machine. If only the Airflow connection contains the machine's host, this
        is the field ``host`` of ``airflow``.
        """
        return self.ssh_operator_args.remote_host or self.airflow.host

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("ssh_hook") is not None:
            data = fields_of_hook(data["ssh_hook"]) | {
                name: data[name] for name in data if name != "ssh_hook"
            }
        data = _nest_fields(data, "airflow", AirflowConfiguration, cls)
        data = _nest_fields(data, "ssh_operator_args", SSHOperatorArgs, cls)
        if isinstance(data, dict):
            data["airflow"] = {"local_or_remote": "remote"} | data.get("airflow", {})
        return data

    @model_validator(mode="after")
    def _check_hosts_of_checks(self) -> Self:
        for name, program in self.programs.items():
            for field in ("ready", "healthy"):
                host = _host_of_check(getattr(program, field) or {})
                if is_loopback(host) or host in _UNSPECIFIED:
                    raise InputError(
                        f"{field} of the program {name!r} is a check of {host}, but the Triggerer runs this check, "
                        "and not the remote machine; give the name of the remote machine, or use a LogLine for ready"
                    )
        return self


def _host_of_check(check: dict[str, Any]) -> str:
    url = str(check.get("http", {}).get("url", ""))
    return str(check.get("tcp", {}).get("host", "")) or urlsplit(url).hostname or ""


def _nest_fields(data: Any, field: str, kind: type[Model], owner: type[Model]) -> Any:
    """Move fields that the user gave directly in the outer model into the nested model that has these fields."""
    data = plain(data)
    if not isinstance(data, dict):
        return data
    outer = {
        name: data[name] for name in data if name in kind.model_fields and name not in owner.model_fields
    }
    given = data.get(field)
    nested = (
        {name: getattr(given, name) for name in given.model_fields_set}
        if isinstance(given, BaseModel)
        else given
    )
    nested = {} if nested is None else nested
    if not isinstance(nested, dict):
        return data
    twice = sorted(outer.keys() & nested.keys())
    if twice:
        raise InputError(
            f"the field {twice[0]} is given both inside and outside {field}; remove one of the two values"
        )
    return {name: value for name, value in data.items() if name not in outer} | {field: nested | outer}


def _user_stacklevel() -> int:
    """Return the ``stacklevel`` for :func:`warnings.warn`, so that the warning shows the user's line of code."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARY_PACKAGES:
        frame, level = frame.f_back, level + 1
    return level
