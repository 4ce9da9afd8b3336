"""Default values for the configuration of a supervisord that belongs to a DAG."""

from __future__ import annotations

import getpass
import re
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from pydantic import SecretStr

from deferrable_ops.exceptions import InputError
from deferrable_ops.supervisord.daemon_sections import (
    LONGEST_SOCKET_PATH,
    InetHttpServerConfiguration,
    RpcInterfaceConfiguration,
    SupervisorctlConfiguration,
    SupervisordConfiguration,
    UnixHttpServerConfiguration,
)
from deferrable_ops.supervisord.policy import ProgramPolicy
from deferrable_ops.supervisord.program_sections import FcgiProgramConfiguration, ProgramConfiguration
from deferrable_ops.supervisord.section import Section

P = TypeVar("P", bound=ProgramConfiguration)
S = TypeVar("S", bound=Section)

DEFAULT_NAME: Final = "name of the supervisord"
"""Key in pydantic's validation context. The value of this key is the name of the default working directory."""

# Limit in bytes, because the length of a Unix socket's path is limited.
_LONGEST_NAME: Final = 24
_SAFE_NAME: Final = re.compile(rf"[A-Za-z0-9_.+@-]{{1,{_LONGEST_NAME}}}")
_SHARED: Final = ("exitcodes", "stopsignal", "stopwaitsecs", "stopasgroup", "killasgroup")


class AirflowDefaults(Protocol):
    """The fields of ``AirflowConfiguration`` from which default values are computed."""

    @property
    def model_fields_set(self) -> set[str]: ...
    @property
    def startsecs(self) -> int: ...
    @property
    def startretries(self) -> int | None: ...
    @property
    def port(self) -> str | None: ...
    @property
    def username(self) -> str | None: ...
    @property
    def password(self) -> SecretStr | None: ...
    @property
    def rpcinterface_factory(self) -> str: ...


class IncompleteConfiguration(Protocol):
    """The parts of ``SupervisorAirflowConfiguration`` from which default values are computed."""

    @property
    def model_fields_set(self) -> set[str]: ...
    @property
    def airflow(self) -> AirflowDefaults: ...
    @property
    def unix_http_server(self) -> UnixHttpServerConfiguration | None: ...
    @property
    def inet_http_server(self) -> InetHttpServerConfiguration | None: ...
    @property
    def supervisord(self) -> SupervisordConfiguration: ...
    @property
    def supervisorctl(self) -> SupervisorctlConfiguration: ...
    @property
    def program(self) -> dict[str, ProgramConfiguration]: ...
    @property
    def fcgiprogram(self) -> dict[str, FcgiProgramConfiguration]: ...
    @property
    def programs(self) -> dict[str, ProgramConfiguration]: ...
    @property
    def rpcinterface(self) -> dict[str, RpcInterfaceConfiguration]: ...
    @property
    def config_path(self) -> Path: ...
    @property
    def working_dir(self) -> Path | None: ...

    def policy_of(self, program: str) -> ProgramPolicy: ...


def fill_defaults(config: IncompleteConfiguration, name: str | None = None) -> dict[str, Any]:
    """Return all fields of a configuration. A field that the user did not set gets its default value.

    Fields with default values are not added to ``model_fields_set``, so that the default values can be computed again
    with another `name`.

    :param name: the name of the working directory that is used if the user did not set ``working_dir``. If `name` is
        None, the names of the programs become the directory's name.
    :raises InputError: if the configuration has no program, or a path is invalid.
    """
    if not config.programs:
        raise InputError("program is empty: there is nothing to run; add at least one program")
    folder = _working_dir(config, name)
    socket = config.unix_http_server or UnixHttpServerConfiguration(file=_socket(folder))
    return {
        "working_dir": folder,
        "config_path": folder / config.config_path,
        "supervisord": _supervisord(config.supervisord, folder),
        "unix_http_server": socket,
        "inet_http_server": _inet_server(config),
        "supervisorctl": _supervisorctl(config.supervisorctl, socket),
        "rpcinterface": _rpcinterface(config),
        "program": {name: _program(config, folder, name, item) for name, item in config.program.items()},
        "fcgiprogram": {
            name: _program(config, folder, name, item) for name, item in config.fcgiprogram.items()
        },
    }


def given_working_dir(config: IncompleteConfiguration) -> Path | None:
    """Return the working directory that the user set, or None if the user did not set a working directory."""
    if "working_dir" in config.model_fields_set:
        return config.working_dir
    return config.supervisord.directory if "directory" in config.supervisord.model_fields_set else None


def _working_dir(config: IncompleteConfiguration, name: str | None) -> Path:
    given = given_working_dir(config)
    if given is None:
        short = _short(name or "-".join(config.programs))
        return Path(tempfile.gettempdir()).absolute() / f"supervisor-{getpass.getuser()}-{short}"
    if not given.is_absolute():
        raise InputError(f"working_dir must be an absolute path, not {str(given)!r}")
    return given


def _short(name: str) -> str:
    return name if _SAFE_NAME.fullmatch(name) else sha256(name.encode()).hexdigest()[:_LONGEST_NAME]


def _socket(folder: Path) -> Path:
    path = folder / "supervisor.sock"
    if len(str(path).encode()) > LONGEST_SOCKET_PATH:
        raise InputError(
            "working_dir is too long, because the path of the socket in this directory must not exceed "
            f"{LONGEST_SOCKET_PATH} bytes; give a shorter path, or set unix_http_server.file to a path in a directory "
            "that only this user can write to"
        )
    return path


def _supervisord(given: SupervisordConfiguration, folder: Path) -> SupervisordConfiguration:
    defaults = {
        "directory": folder,
        "childlogdir": folder,
        "logfile": folder / "supervisord.log",
        "pidfile": folder / "supervisord.pid",
    }
    missing = {name: value for name, value in defaults.items() if name not in given.model_fields_set}
    # With nodaemon, supervisord would stay in the foreground, and would end together with the process that starts it.
    return _completed(given, missing | {"nodaemon": False})


def _inet_server(config: IncompleteConfiguration) -> InetHttpServerConfiguration | None:
    airflow, given = config.airflow, config.inet_http_server
    if airflow.port is None:
        return given
    if given is not None and given.port != airflow.port:
        raise InputError(
            f"port={airflow.port!r} and inet_http_server.port={given.port!r} differ; give only one of them"
        )
    return given or InetHttpServerConfiguration(
        port=airflow.port, username=airflow.username, password=airflow.password
    )


def _supervisorctl(
    given: SupervisorctlConfiguration, socket: UnixHttpServerConfiguration
) -> SupervisorctlConfiguration:
    if "serverurl" in given.model_fields_set:
        return given
    login = {"username": socket.username, "password": socket.password}
    return _completed(given, {"serverurl": f"unix://{socket.file}"} | (login if socket.password else {}))


def _rpcinterface(config: IncompleteConfiguration) -> dict[str, RpcInterfaceConfiguration]:
    main = RpcInterfaceConfiguration(rpcinterface_factory=config.airflow.rpcinterface_factory)
    return {"supervisor": main} | config.rpcinterface


def _program(config: IncompleteConfiguration, folder: Path, name: str, given: P) -> P:
    airflow, directory = config.airflow, folder / name
    # Several processes cannot share a rotating log file.
    suffix = "-%(process_num)s" if given.numprocs > 1 else ""
    shared = {field: getattr(airflow, field) for field in _SHARED}
    if airflow.startretries is not None:
        shared["startretries"] = airflow.startretries
    codes_matter = config.policy_of(name).exit_codes and "startsecs" not in airflow.model_fields_set
    values = shared | {
        "startsecs": 0 if codes_matter else airflow.startsecs,
        "autostart": False,
        "autorestart": False,
        "directory": directory,
        "stdout_logfile": directory / f"output{suffix}.log",
        "stderr_logfile": directory / f"error{suffix}.log",
    }
    if "stopasgroup" in given.model_fields_set and "killasgroup" not in given.model_fields_set:
        del values["killasgroup"]
    missing = {field: value for field, value in values.items() if field not in given.model_fields_set}
    return _completed(given, missing)


def _completed(given: S, values: dict[str, Any]) -> S:
    # model_copy(update=...) would add the values to model_fields_set, as if the user had given them.
    completed = given.model_copy()
    completed.__dict__.update(values)
    return completed
