"""The configuration sections of programs, FastCGI programs and event listeners."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from graphlib import CycleError, TopologicalSorter
from hashlib import sha256
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from deferrable_ops.exceptions import InputError
from deferrable_ops.plain_data import has_template
from deferrable_ops.supervisord.rendering import IN_PROCESS, IN_PROGRAM, needs_file, shell_variables
from deferrable_ops.supervisord.section import Section
from deferrable_ops.supervisord.values import (
    ByteSize,
    Events,
    ExitCodes,
    FilePath,
    Name,
    Octal,
    Signal,
    User,
    Variables,
)

_Count = Annotated[int, Field(ge=0)]
# supervisor's process_or_group_name() rejects ' ', ':' and '/', because they are separators in full names.
_ProcessName = Annotated[str, Field(pattern=r"^[^\s:/]+$")]


_FILE_VARIABLE: Final = "DEFERRABLE_OPS_ENVIRONMENT"
_DIGEST_VARIABLE: Final = "DEFERRABLE_OPS_ENVIRONMENT_SHA256"
# The shell replaces itself by the program, so the process id stays the same.
_RUN_WITH_FILE: Final = f"""/bin/sh -c '. "${_FILE_VARIABLE}" && unset {_FILE_VARIABLE} && exec "$@"' sh"""


# The names by which a configuration stores the ready-made checks. This layer does not import their classes.
_CHECKS: Final = {
    "deferrable_ops.checks.tcp.TcpCheck": "tcp",
    "deferrable_ops.checks.http.HttpCheck": "http",
}
_NO_LOG_FILES: Final = frozenset({"none", "syslog", "/dev/stdout", "/dev/stderr", "/dev/null"})


@dataclass(frozen=True)
class LogLine:
    """A check that passes if a program has written a line with this text to standard output or standard error since the
    program was started.

    :param contains: a text that the line must contain.
    :raises InputError: if the text is empty, or has several lines.
    """

    contains: str

    def __post_init__(self) -> None:
        """Validate the text."""
        if not isinstance(self.contains, str) or len(self.contains.splitlines()) != 1:
            raise InputError("LogLine needs a text that is in one line of the program's output")


def _program_check(value: Any) -> Any:
    """Convert a check to a dict with one key: tcp, http or log. Its value is a dict with the arguments of the check."""
    kind = _CHECKS.get(f"{type(value).__module__}.{type(value).__qualname__}")
    if isinstance(value, LogLine):
        value = {"log": {"contains": value.contains}}
    elif kind is not None:
        given = {field.name: getattr(value, field.name) for field in fields(value)}
        defaults = {field.name: field.default for field in fields(value)}
        value = {kind: {name: item for name, item in given.items() if item != defaults[name]}}
    match value:
        case {"log": dict(arguments), **others} if not others:
            if set(arguments) != {"contains"}:
                raise InputError(
                    "has a LogLine without contains=, or with other arguments; give only contains="
                )
            LogLine(arguments["contains"])
        case {"tcp": dict(arguments), **others} | {"http": dict(arguments), **others} if not others:
            _refuse_arguments(arguments)
        case _:
            raise InputError(
                "is not a check of a program; give a TcpCheck, an HttpCheck or a LogLine, or a dict such as "
                "{'tcp': {'host': 'db', 'port': 5432}}"
            )
    return {name: {key: item for key, item in of.items() if item is not None} for name, of in value.items()}


def _refuse_arguments(arguments: Mapping[str, Any]) -> None:
    unused = sorted({"on_pass", "on_fail"} & arguments.keys())
    if unused:
        raise InputError(
            f"has a check with {unused[0]}, which has no effect on a program; remove {unused[0]}"
        )
    templates = sorted(name for name, value in arguments.items() if has_template(str(value)))
    if templates:
        raise InputError(
            f"has a check with a template in {templates[0]}, but the configuration of a supervisord has no templates; "
            "give the value itself"
        )


ProgramCheck = Annotated[Any, BeforeValidator(_program_check)]
"""A check of a program, as a dict with one key (tcp, http or log) and the arguments of the check."""

_Length = Annotated[timedelta, Field(gt=timedelta(0))]


def environment_file(program: str) -> str:
    """Return the name of the file for the script from :meth:`ProgramConfiguration.environment_script`. The file must be
    in the directory of supervisord's configuration file.
    """
    return f"environment-{program}.sh"


class ProgramConfiguration(Section):
    """``[program:NAME]``: a command that supervisord runs, and the log files for its output.

    :param command: the command and its arguments, in one line. supervisord splits this line into words as a POSIX shell
        does, but uses no shell to run it. The library escapes each ``;`` or ``#`` that follows a space. Otherwise,
        supervisord would treat this character as the start of a comment.
    :param numprocs: how many processes supervisord starts for this program. If ``numprocs`` is greater than 1,
        ``process_name`` must contain ``%(process_num)s``.
    :param startsecs: supervisord treats a process as started after the process has run for this number of seconds. If
        the process ends earlier, supervisord restarts it up to ``startretries`` times. If all these restarts fail, the
        process has the state FATAL and no exit code. If ``startsecs`` is 0, supervisord treats every start as
        successful, and reports the exit code.
    :param autorestart: whether supervisord restarts a process that has ended. With the value ``unexpected``,
        supervisord restarts the process only if ``exitcodes`` does not contain the exit code of the process.
    :param killasgroup: whether supervisord kills the process's child processes together with the process. If
        ``killasgroup`` is None, the value of ``stopasgroup`` applies.
    :param stdout_logfile: the path of the log file for standard output; or AUTO, if supervisord chooses the path; or
        NONE, for no log file.
    :param ready: the check that shows that the program is ready: a TcpCheck, an HttpCheck or a LogLine. Programs with
        this program in their ``after`` wait for this check. If ``ready`` is None, the program is ready as soon as it
        has started.
    :param ready_timeout: the longest time from the start of the program until it is ready; a timedelta, or a number of
        seconds. During this time, failures of the check ``healthy`` are not counted until the check has passed once.
    :param after: the names of the programs that must be ready before the step ``start-programs`` starts this program.
    :param healthy: the check that shows that the running program works: a TcpCheck or an HttpCheck. The task that
        watches the programs runs this check once per ``check_interval``.
    :param failure_threshold: the program is restarted after the check ``healthy`` has failed this number of times in a
        row.
    :raises InputError: if two fields contradict each other.
    """

    _header = "program"
    _expressions = IN_PROGRAM
    _expressions_of: ClassVar = dict.fromkeys(
        ("command", "process_name", "environment", "directory", "stdout_logfile", "stderr_logfile"),
        IN_PROCESS,
    )
    _expanded_twice = frozenset({"stdout_logfile", "stderr_logfile"})
    _not_in_file = frozenset({"ready", "ready_timeout", "after", "healthy", "failure_threshold"})

    command: str = Field(min_length=1)
    process_name: _ProcessName = "%(program_name)s"
    numprocs: int = Field(default=1, ge=1)
    numprocs_start: _Count = 0
    priority: int = 999
    autostart: bool = True
    startsecs: _Count = 1
    startretries: _Count = 3
    autorestart: bool | Literal["unexpected"] = "unexpected"
    exitcodes: ExitCodes = Field(default_factory=lambda: [0])
    stopsignal: Signal = "TERM"
    stopwaitsecs: _Count = 10
    stopasgroup: bool = False
    killasgroup: bool | None = None
    user: User | None = None
    redirect_stderr: bool = False
    stdout_logfile: FilePath = FilePath("AUTO")
    stdout_logfile_maxbytes: ByteSize = "50MB"
    stdout_logfile_backups: _Count = 10
    stdout_capture_maxbytes: ByteSize = "0"
    stdout_events_enabled: bool = False
    stdout_syslog: bool = False
    stderr_logfile: FilePath = FilePath("AUTO")
    stderr_logfile_maxbytes: ByteSize = "50MB"
    stderr_logfile_backups: _Count = 10
    stderr_capture_maxbytes: ByteSize = "0"
    stderr_events_enabled: bool = False
    stderr_syslog: bool = False
    environment: Variables = Field(default_factory=dict, repr=False)
    directory: FilePath | None = None
    umask: Octal | None = None
    serverurl: Annotated[str, Field(pattern="^(AUTO|(https?|unix)://.+)$")] | None = None
    ready: ProgramCheck = Field(default=None, repr=False)
    ready_timeout: _Length = timedelta(minutes=1)
    after: list[Name] = Field(default_factory=list)
    healthy: ProgramCheck = Field(default=None, repr=False)
    failure_threshold: int = Field(default=3, ge=1)

    def environment_script(self, key: str = "") -> str:
        """Return a shell script that exports the environment variables that supervisord's file cannot contain, because
        their values contain line breaks or quotes; "" if there are no such variables.

        The text contains secrets, so write it only to a file with mode 0600. See :func:`environment_file` for its name.

        :raises InputError: if a variable cannot be exported, or the program runs as another user.
        """
        variables = {name: value for name, value in self.environment.items() if needs_file(value)}
        argument = f"environment in [{self._header}:{key}]" if key else "environment"
        if variables and self.user is not None:
            raise InputError(
                f"{argument} has a value with quotes or line breaks. This value is kept in a file that only "
                "supervisord's user can read, but the field user lets another user run the program; remove "
                "user, or change the value"
            )
        return shell_variables(argument, variables, IN_PROCESS)

    def _lines(self, header: str) -> Iterator[tuple[str, str]]:
        key = header.partition(":")[2]
        script = self.environment_script(key)
        section = self
        if script:
            section = self.model_copy()
            easy = {name: value for name, value in self.environment.items() if not needs_file(value)}
            # The digest lets supervisord see that the program must be restarted after a value has changed.
            own = {
                _FILE_VARIABLE: f"%(here)s/{environment_file(key)}",
                _DIGEST_VARIABLE: sha256(script.encode()).hexdigest(),
            }
            section.__dict__.update(command=f"{_RUN_WITH_FILE} {self.command}", environment=easy | own)
        yield from super(ProgramConfiguration, section)._lines(header)

    @model_validator(mode="after")
    def _check_checks(self) -> Self:
        if "log" in (self.healthy or {}):
            raise InputError(
                "healthy is a LogLine, but a line in a log does not show whether the program works now; give a "
                "TcpCheck or an HttpCheck"
            )
        logs = [self.stdout_logfile, *([] if self.redirect_stderr else [self.stderr_logfile])]
        if "log" in (self.ready or {}) and all(str(log).lower() in _NO_LOG_FILES for log in logs):
            raise InputError(
                "ready is a LogLine, but the program has no log file; set stdout_logfile or stderr_logfile"
            )
        return self

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.numprocs > 1 and "%(process_num)" not in self.process_name:
            raise InputError("process_name must contain %(process_num)s because numprocs is above 1")
        if self.stopasgroup and self.killasgroup is False:
            raise InputError(
                "supervisord refuses to start with both killasgroup=false and stopasgroup=true; change one of them"
            )
        return self


class FcgiProgramConfiguration(ProgramConfiguration):
    """``[fcgi-program:NAME]``: FastCGI processes that share one socket.

    :param socket: ``tcp://host:port`` or ``unix:///absolute/path``.
    """

    _header = "fcgi-program"

    socket: Annotated[str, Field(pattern=r"^(unix:///.+|tcp://[^\s:]+:[0-9]+)$")]
    socket_backlog: int | None = Field(default=None, ge=1, le=65535)
    socket_owner: User | None = None
    socket_mode: Octal | None = None

    @model_validator(mode="after")
    def _check_file_options(self) -> Self:
        if self.socket.startswith("tcp:") and (self.socket_owner or self.socket_mode):
            raise InputError(
                "socket_owner and socket_mode require socket=unix://..., but socket is a TCP address; "
                "remove socket_owner and socket_mode"
            )
        return self


class EventListenerConfiguration(ProgramConfiguration):
    """``[eventlistener:NAME]``: a program that receives supervisord's events on its standard input.

    :param events: names of supervisor's event types, such as PROCESS_STATE.
    """

    _header = "eventlistener"

    priority: int = -1
    buffer_size: int = Field(default=10, ge=1)
    events: Events
    result_handler: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")] = (
        "supervisor.dispatchers:default_handler"
    )

    @model_validator(mode="after")
    def _check_protocol(self) -> Self:
        unused = sorted(self._not_in_file & self.model_fields_set)
        if unused:
            raise InputError(f"{unused[0]} cannot be used for an event listener; remove {unused[0]}")
        if self.redirect_stderr or self.stdout_capture_maxbytes != "0":
            raise InputError(
                "redirect_stderr and stdout_capture_maxbytes cannot be used for an event listener, because supervisord "
                "reads the listener's answers from its standard output; remove both fields"
            )
        return self


def start_order(programs: Mapping[str, ProgramConfiguration]) -> list[str]:
    """Return the names of the programs in an order in which each program comes after the programs in its ``after``.

    :raises InputError: if there is no such order, or if a name in ``after`` is not the name of a program.
    """
    for name, program in programs.items():
        unknown = [other for other in program.after if other not in programs]
        if unknown:
            raise InputError(
                f"after of the program {name!r} contains {unknown[0]!r}, which is not the name of a program in the "
                "fields program and fcgiprogram; check the name"
            )
    try:
        return [
            *TopologicalSorter({name: program.after for name, program in programs.items()}).static_order()
        ]
    except CycleError as error:
        cycle = " -> ".join(error.args[1])
        raise InputError(
            f"after makes programs wait for each other: {cycle}; remove one of these names from after"
        ) from None
