"""A configuration of supervisord as Airflow's tasks run it: what the daemon is told, and how it is watched."""

from __future__ import annotations

import inspect
import warnings
from datetime import time, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    FieldSerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_serializer,
    model_validator,
)

from deferrable_ops.exceptions import InputError
from deferrable_ops.supervisord.configuration import SupervisorConfiguration
from deferrable_ops.supervisord.daemon_sections import check_credentials
from deferrable_ops.supervisord.defaults import DEFAULT_NAME, fill_defaults
from deferrable_ops.supervisord.policy import ProgramPolicy
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
_NOT_THE_USERS: Final = frozenset({"deferrable_ops", "pydantic"})


def _fields_of(value: Any) -> Any:
    """Return another library's model of the same fields as a dict of those that were given."""
    return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value


def _time_of_day(value: Any) -> Any:
    """Return seconds since midnight as a time: YAML 1.1 reads 23:00:00 as 82800."""
    if isinstance(value, int) and 0 <= value < 86400:
        return time(value // 3600, value // 60 % 60, value % 60)
    return value


def _pool_name(value: Any) -> Any:
    return getattr(value, "pool", value)


class AirflowConfiguration(Model):
    """What all programs have where they do not say otherwise, and how supervisord is reached.

    :param port: where an inet server listens, as ``127.0.0.1:9001``, ``*:9001`` or ``9001``; None: there is none, and
        the Unix socket alone is used. Without a password, a port that other machines reach is left out, with a warning.
    :param startsecs: 0 where a program may end within a second, or where its exit code matters.
    :param username: of the inet server, with ``password``.
    :param host: where a client reaches the inet server.
    :param command_timeout: seconds that a step may take.
    :raises InputError: of ``username`` and ``password``, one is missing.
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
    def _no_open_port(self) -> Self:
        check_credentials(self.username, self.password)
        if self.port is not None and self.password is None and not is_loopback(host_of(self.port)):
            warnings.warn(
                f"port={self.port!r} without a password would let anyone who reaches it run commands: supervisord is "
                "reached by its Unix socket instead. Leave port out, or set username and password.",
                stacklevel=_levels_to_the_user(),
            )
            self.__dict__["port"] = None
        return self


class SSHOperatorArgs(Model):
    """How the remote machine is reached.

    :param ssh_conn_id: an Airflow connection of the type SSH.
    :param remote_host: replaces the connection's host.
    :param conn_timeout: seconds to connect.
    :param cmd_timeout: seconds that a remote command may take.
    :param banner_timeout: seconds for the server's greeting.
    :param environment: of the remote commands.
    """

    ssh_conn_id: str | None = None
    remote_host: str | None = None
    conn_timeout: float | None = Field(default=None, gt=0)
    cmd_timeout: float | None = Field(default=None, gt=0)
    banner_timeout: float | None = Field(default=None, gt=0)
    environment: dict[str, str] = Field(default_factory=dict, repr=False)


class SupervisorAirflowConfiguration(SupervisorConfiguration):
    """A supervisord that belongs to a DAG.

    What is left out is filled in: the daemon's files and one folder a program in ``working_dir``, a Unix socket that
    only its user can open, and programs that supervisord neither starts nor restarts by itself. What a program says
    for itself wins. The fields of :class:`AirflowConfiguration` may also stand beside ``program``, without ``airflow``.

    :param check_interval: between two looks at the programs; a duration, or seconds, as all lengths of time here.
    :param check_timeout: for how long they are watched.
    :param runtime: for how long they run, from ``reference_date``.
    :param endtime: the time of day at which they end.
    :param maxretrigger: how often the DAG runs itself again; None: without limit.
    :param stop_on_exit: stop programs and daemon when the watching ends.
    :param cleanup: remove ``working_dir`` then; only with ``stop_on_exit``.
    :param restart_on_initial: start programs anew that a run which nobody retriggered finds running.
    :param restart_on_retrigger: the same for a run that was retriggered.
    :param forward_logs: copy the programs' output to the task's log.
    :param log_chunk_size: bytes that are read of an output at once.
    :param pool: an Airflow pool.
    :param drift: what to do when the running daemon has another configuration.
    :param policy: how programs are judged.
    :param policies: how these ones are judged instead.
    :raises InputError: a field contradicts another, or a name is unknown.
    """

    airflow: AirflowConfiguration = Field(default_factory=AirflowConfiguration)
    check_interval: _Length = timedelta(seconds=5)
    check_timeout: _Length = timedelta(hours=8)
    runtime: _Length | None = None
    endtime: Annotated[time | None, BeforeValidator(_time_of_day)] = None
    maxretrigger: _Count | None = None
    reference_date: Literal["start_date", "logical_date", "data_interval_end"] = "data_interval_end"
    stop_on_exit: bool = True
    cleanup: bool = True
    restart_on_initial: bool = False
    restart_on_retrigger: bool = False
    forward_logs: bool = False
    log_chunk_size: int = Field(default=65536, gt=0, le=1048576)
    pool: Annotated[str | None, BeforeValidator(_pool_name)] = None
    drift: Literal["warn", "apply", "fail"] = "warn"
    policy: ProgramPolicy = Field(default_factory=ProgramPolicy)
    policies: dict[Name, ProgramPolicy] = Field(default_factory=dict)

    def policy_of(self, program: str) -> ProgramPolicy:
        """Return how a program is judged."""
        return self.policies.get(program, self.policy)

    @property
    def given_fields(self) -> dict[str, Any]:
        """The fields that were given: what makes the same configuration again, with nothing that was filled in."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return given | ({"config_path": self._given_path} if "config_path" in given else {})

    @property
    def socket_path(self) -> Path:
        """The Unix socket that supervisord is reached by."""
        assert self.unix_http_server is not None
        return self.unix_http_server.file

    @property
    def directories(self) -> tuple[Path, ...]:
        """The directories that must be there before supervisord starts, each after its parent."""
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

    @property
    def _given_path(self) -> Path:
        folder, path = self.working_dir, self.config_path
        return path.relative_to(folder) if folder is not None and path.is_relative_to(folder) else path

    @field_serializer("config_path", mode="wrap")
    def _written_path(
        self, path: Path, write: SerializerFunctionWrapHandler, info: FieldSerializationInfo
    ) -> Any:
        # What was given alone says nothing of a directory that was filled in.
        return write(self._given_path if info.exclude_unset else path)

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, data: Any) -> Any:
        return _moved(data, "airflow", AirflowConfiguration, cls)

    @model_validator(mode="after")
    def _filled(self, info: ValidationInfo) -> Self:
        unknown = sorted(set(self.policies) - set(self.programs))
        if unknown:
            raise InputError(f"policies names {unknown[0]!r}, which is neither in program nor fcgiprogram")
        self.__dict__.update(fill_defaults(self, (info.context or {}).get(DEFAULT_NAME)))
        return self


class SupervisorSSHAirflowConfiguration(SupervisorAirflowConfiguration):
    """A supervisord on another machine, which is reached by SSH; all its paths are that machine's.

    :param command_prefix: a shell command that goes before each remote one, as ``source /opt/venv/bin/activate``.
    :param ssh_operator_args: how the machine is reached; its fields may also stand without it.
    """

    command_prefix: str = ""
    ssh_operator_args: Annotated[SSHOperatorArgs, BeforeValidator(_fields_of)] = Field(
        default_factory=SSHOperatorArgs
    )

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("ssh_hook") is not None:
            raise InputError("ssh_hook is an object, which cannot be sent to the triggerer; give ssh_conn_id")
        data = _moved(data, "airflow", AirflowConfiguration, cls)
        data = _moved(data, "ssh_operator_args", SSHOperatorArgs, cls)
        if isinstance(data, dict):
            data["airflow"] = {"local_or_remote": "remote"} | data.get("airflow", {})
        return data


def _moved(data: Any, field: str, kind: type[Model], owner: type[Model]) -> Any:
    """Return the fields with those of a nested model where they belong, whichever way they were given."""
    data = plain(data)
    if not isinstance(data, dict):
        return data
    beside = {
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
    twice = sorted(beside.keys() & nested.keys())
    if twice:
        raise InputError(f"{twice[0]} is given twice, beside {field} and in it; give it once")
    return {name: value for name, value in data.items() if name not in beside} | {field: nested | beside}


def _levels_to_the_user() -> int:
    """Return the stack level, as its caller counts, of the first code that is neither ours nor pydantic's."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_THE_USERS:
        frame, level = frame.f_back, level + 1
    return level
