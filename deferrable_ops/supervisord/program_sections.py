"""The configuration sections of programs, FastCGI programs and event listeners."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from deferrable_ops.exceptions import InputError
from deferrable_ops.supervisord.rendering import IN_PROCESS, IN_PROGRAM, needs_file, shell_variables
from deferrable_ops.supervisord.section import Section
from deferrable_ops.supervisord.values import (
    ByteSize,
    Events,
    ExitCodes,
    FilePath,
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


def environment_file(program: str) -> str:
    """Return the name of the file with :meth:`ProgramConfiguration.environment_script`. The file must be in the
    directory of supervisord's configuration file.
    """
    return f"environment-{program}.sh"


class ProgramConfiguration(Section):
    """``[program:NAME]``: a command that supervisord runs, and the log files for its output.

    :param command: the command and its arguments, in one line. supervisord splits this line into words as a POSIX shell
        does, but uses no shell to run it. The library escapes each ``;`` or ``#`` that follows a space. Otherwise,
        supervisord would treat it as the start of a comment.
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
    :raises InputError: if two fields contradict each other.
    """

    _header = "program"
    _expressions = IN_PROGRAM
    _expressions_of: ClassVar = dict.fromkeys(
        ("command", "process_name", "environment", "directory", "stdout_logfile", "stderr_logfile"),
        IN_PROCESS,
    )
    _expanded_twice = frozenset({"stdout_logfile", "stderr_logfile"})

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

    def environment_script(self, key: str = "") -> str:
        """Return a shell script that exports the environment variables that supervisord's file cannot contain, because
        their values contain line breaks or quotes; "" if there are none.

        The text contains secrets, so write it only to a file with mode 0600. See :func:`environment_file` for its name.

        :raises InputError: if a variable cannot be exported, or the program runs as another user.
        """
        variables = {name: value for name, value in self.environment.items() if needs_file(value)}
        argument = f"environment in [{self._header}:{key}]" if key else "environment"
        if variables and self.user is not None:
            raise InputError(
                f"{argument} has a value with quotes or line breaks, which is kept in a file that only supervisord's "
                "user can read; remove user, or change the value"
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
        if self.redirect_stderr or self.stdout_capture_maxbytes != "0":
            raise InputError(
                "redirect_stderr and stdout_capture_maxbytes cannot be used for an event listener, because supervisord "
                "reads the listener's answers from its standard output; remove both fields"
            )
        return self
