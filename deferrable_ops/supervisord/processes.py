"""supervisord's processes, as its ``getAllProcessInfo`` describes them, and what their ends mean."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Self

from deferrable_ops.exceptions import InputError
from deferrable_ops.supervisord.configuration import SupervisorConfiguration
from deferrable_ops.supervisord.policy import Action, ProgramPolicy
from deferrable_ops.supervisord.program_sections import ProgramConfiguration

_EXPRESSION: Final = re.compile(r"%\((\w+)\)[#0 +-]*[0-9]*(?:\.[0-9]+)?([a-zA-Z])")


class ProcessState(IntEnum):
    """The states of a process (supervisor's ``states.py``)."""

    STOPPED = 0
    STARTING = 10
    RUNNING = 20
    BACKOFF = 30
    STOPPING = 40
    EXITED = 100
    FATAL = 200
    UNKNOWN = 1000

    @classmethod
    def _missing_(cls, value: object) -> ProcessState:
        return cls.UNKNOWN


ALIVE: Final = frozenset(
    {ProcessState.STARTING, ProcessState.RUNNING, ProcessState.BACKOFF, ProcessState.STOPPING}
)
"""In these a process runs, or supervisord is about to start it again by itself."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a program.

    :param start: when it was started last, by supervisord's clock, in whole seconds since 1970; 0: never.
    :param now: what that clock says.
    :param exit_code: of its last end; -1: a signal ended it. 0 also where it never ended, or was FATAL.
    :param pid: 0 while it does not run.
    :param error: why it could not be started, or is FATAL.
    :param stdout_log: the path of its log; "" where it has none, as ``stderr_log``.
    """

    group: str
    name: str
    state: ProcessState
    start: int
    now: int
    exit_code: int
    pid: int
    error: str = ""
    stdout_log: str = ""
    stderr_log: str = ""

    @classmethod
    def from_info(cls, info: Mapping[str, Any]) -> Self:
        """Return the process that an entry of ``getAllProcessInfo`` describes.

        :raises InputError: it is none.
        """
        try:
            return cls(
                group=str(info["group"]),
                name=str(info["name"]),
                state=ProcessState(info["state"]),
                start=int(info["start"]),
                now=int(info["now"]),
                exit_code=int(info["exitstatus"]),
                pid=int(info["pid"]),
                error=str(info.get("spawnerr", "")),
                stdout_log=str(info.get("stdout_logfile", "")),
                stderr_log=str(info.get("stderr_logfile", "")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"supervisord's answer does not describe a process: {error!r}") from None

    @property
    def full_name(self) -> str:
        """How XML-RPC calls the process."""
        return f"{self.group}:{self.name}"

    @property
    def is_alive(self) -> bool:
        """Whether it runs, or supervisord is about to start it again by itself."""
        return self.state in ALIVE

    @property
    def end(self) -> str:
        """Say how it ended, for a human."""
        if self.state is ProcessState.EXITED:
            return "was ended by a signal" if self.exit_code == -1 else f"exited with {self.exit_code}"
        if self.state is ProcessState.STOPPED:
            return "was stopped" if self.start else "was never started by this supervisord"
        return f"is {self.state.name}{': ' if self.error else ''}{self.error}"


def processes_by_program(
    config: SupervisorConfiguration, processes: Iterable[Process]
) -> dict[str, tuple[Process, ...]]:
    """Return each program's processes, those of a FastCGI program among them; event listeners are left out."""
    by_group: dict[str, list[Process]] = {}
    for process in processes:
        by_group.setdefault(process.group, []).append(process)
    shared = {program: name for name, group in config.group.items() for program in group.programs}
    return {
        name: _named(name, shared[name], program, by_group.get(shared[name], []))
        if name in shared
        else tuple(by_group.get(name, ()))
        for name, program in config.programs.items()
    }


def interpret_end(process: Process, program: ProgramConfiguration, policy: ProgramPolicy) -> Action | None:
    """Return what the end of a process means, or None while it runs or supervisord will start it again.

    A process that somebody stopped is done.
    """
    if process.state in ALIVE:
        return None
    if process.state is ProcessState.STOPPED:
        return Action.SUCCESS if process.start else policy.otherwise
    if process.state is not ProcessState.EXITED:
        return policy.otherwise
    code = process.exit_code
    if code in policy.exit_codes:
        return policy.exit_codes[code]
    if program.autorestart is True or (program.autorestart == "unexpected" and code not in program.exitcodes):
        return None
    return Action.SUCCESS if code in program.exitcodes else policy.otherwise


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the watching task has to do.

    :param action: None: watch on.
    :param reason: one sentence for the task's log; empty while there is nothing to say.
    """

    action: Action | None
    reason: str = ""


# The first of these that any program asks for is done at once; the others wait for all programs to end.
_AT_ONCE: Final = (Action.FAIL, Action.RETRIGGER, Action.RETRY)


def overall_verdict(
    config: SupervisorConfiguration,
    found: Mapping[str, tuple[Process, ...]],
    policies: Mapping[str, ProgramPolicy],
    paused: Collection[str] = (),
) -> Verdict:
    """Return what all programs together mean.

    One that failed decides at once. When all have ended, it is a success, or a skip if none of them succeeded.

    :param found: every program's processes, as :func:`processes_of` returns them.
    :param policies: of every program, by its name.
    :param paused: full names of processes that are kept stopped for a while: they have not ended.
    """
    meant: list[tuple[Action | None, str]] = []
    for name, program in config.programs.items():
        own, policy = found[name], policies[name]
        if len(own) < program.numprocs:
            reason = f"supervisord knows {len(own)} of the {program.numprocs} processes of {name!r}"
            meant.append((policy.otherwise, reason))
        for process in own:
            action = None if process.full_name in paused else interpret_end(process, program, policy)
            meant.append((action, "" if action is None else f"{process.full_name} {process.end}"))
    return _together(meant)


def _together(meant: list[tuple[Action | None, str]]) -> Verdict:
    actions = {action for action, _ in meant}
    for action in _AT_ONCE:
        if action in actions:
            reasons = [reason for asked, reason in meant if asked in _AT_ONCE]
            return Verdict(action, "; ".join(reasons))
    if None in actions:
        return Verdict(None)
    return Verdict(
        Action.SKIP if actions == {Action.SKIP} else Action.SUCCESS, "; ".join(reason for _, reason in meant)
    )


def _named(
    program_name: str, group: str, program: ProgramConfiguration, processes: list[Process]
) -> tuple[Process, ...]:
    """Return the processes of one program among those of its group."""
    known = {"program_name": program_name, "group_name": group}
    pattern, position = "", 0
    for expression in _EXPRESSION.finditer(program.process_name):
        pattern += re.escape(program.process_name[position : expression.start()])
        name = expression[1]
        pattern += re.escape(known[name]) if name in known else r"\d+" if name == "process_num" else ".+"
        position = expression.end()
    pattern += re.escape(program.process_name[position:])
    return tuple(process for process in processes if re.fullmatch(pattern, process.name))
