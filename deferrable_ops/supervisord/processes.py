"""Reads supervisord's processes from the result of its method ``getAllProcessInfo``, and decides which action follows
when a process has ended.
"""

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
    """The states of a process, with the numbers from supervisor's file ``states.py``."""

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
"""States in which a process runs, or in which supervisord will restart the process."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a program.

    :param start: time of the process's newest start according to supervisord's clock, in whole seconds since 1970; 0 if
        the process was never started.
    :param now: current time of supervisord's clock, in whole seconds since 1970.
    :param exit_code: the exit code with which the process last ended; -1 if a signal ended it. `exit_code` is 0 if the
        process never ended, or if its state is FATAL.
    :param pid: the process id; 0 while the process is not running.
    :param error: supervisord's error message if the process could not be started; otherwise "".
    :param stdout_log: path of the log file for the process's standard output; "" if the process has no such file.
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
        """Return the process that an entry in the result of ``getAllProcessInfo`` describes.

        :raises InputError: if the entry is malformed.
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
            raise InputError(
                f"supervisord's answer does not describe a process, because a field is missing or invalid ({error!r}); "
                "check the version of supervisor"
            ) from None

    @property
    def full_name(self) -> str:
        """The name ``group:name``, by which XML-RPC calls name the process."""
        return f"{self.group}:{self.name}"

    @property
    def is_alive(self) -> bool:
        """Whether the process is running, or supervisord will restart it."""
        return self.state in ALIVE

    @property
    def end(self) -> str:
        """How the process ended, as the second part of a sentence that begins with the process's name."""
        if self.state is ProcessState.EXITED:
            return "was ended by a signal" if self.exit_code == -1 else f"exited with {self.exit_code}"
        if self.state is ProcessState.STOPPED:
            return "was stopped" if self.start else "was never started by this supervisord"
        return f"is {self.state.name}{': ' if self.error else ''}{self.error}"


def processes_by_program(
    config: SupervisorConfiguration, processes: Iterable[Process]
) -> dict[str, tuple[Process, ...]]:
    """Return the processes of each program, including FastCGI programs. Event listeners are omitted."""
    by_group: dict[str, list[Process]] = {}
    for process in processes:
        by_group.setdefault(process.group, []).append(process)
    group_of = {program: name for name, group in config.group.items() for program in group.programs}
    return {
        name: _named(name, group_of[name], program, by_group.get(group_of[name], []))
        if name in group_of
        else tuple(by_group.get(name, ()))
        for name, program in config.programs.items()
    }


def has_ended_well(process: Process, program: ProgramConfiguration) -> bool:
    """Return whether a process was stopped on request, or has exited with an exit code that the program's ``exitcodes``
    contain. The result does not depend on the program's policy.
    """
    if process.state is ProcessState.STOPPED:
        return process.start > 0
    return process.state is ProcessState.EXITED and process.exit_code in program.exitcodes


def interpret_end(process: Process, program: ProgramConfiguration, policy: ProgramPolicy) -> Action | None:
    """Return the action that the policy requires for an ended process. Return None if the process is running, or if
    supervisord will restart it.

    If a user or a task stopped the process, the action is SUCCESS.
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
    """What the task that watches the programs must do.

    :param action: the action to take now; None means to continue watching the programs.
    :param reason: a sentence that explains ``action`` in the task's log; may be empty.
    """

    action: Action | None
    reason: str = ""


# As soon as one program requires one of these actions, the watch ends. If programs require different actions, the first
# action in this list applies. The actions that are not in this list apply when all programs have ended.
_IMMEDIATE: Final = (Action.FAIL, Action.RETRIGGER, Action.RETRY)


def overall_verdict(
    config: SupervisorConfiguration,
    found: Mapping[str, tuple[Process, ...]],
    policies: Mapping[str, ProgramPolicy],
    paused: Collection[str] = (),
) -> Verdict:
    """Return what the watching task must do, decided from the processes of all programs.

    As soon as the action for one program is FAIL, RETRIGGER or RETRY, the verdict has this action. Otherwise, the
    action of the verdict is None until all programs have ended. When all programs have ended, the action of the verdict
    is SKIP if the action for every program is SKIP. If at least one of these actions is not SKIP, the action of the
    verdict is SUCCESS.

    :param found: the processes of each program, from :func:`processes_by_program`.
    :param policies: the policy of each program, by the program's name.
    :param paused: the full names of the processes that are paused because of a crash loop. A paused process is treated
        as a process that has not ended.
    """
    ends: list[tuple[Action | None, str]] = []
    for name, program in config.programs.items():
        own, policy = found[name], policies[name]
        if len(own) < program.numprocs:
            reason = f"supervisord has {len(own)} of the {program.numprocs} processes of {name!r}"
            ends.append((policy.otherwise, reason))
        for process in own:
            action = None if process.full_name in paused else interpret_end(process, program, policy)
            ends.append((action, "" if action is None else f"{process.full_name} {process.end}"))
    return _combine(ends)


def _combine(ends: list[tuple[Action | None, str]]) -> Verdict:
    actions = {action for action, _ in ends}
    for action in _IMMEDIATE:
        if action in actions:
            reasons = [reason for required, reason in ends if required in _IMMEDIATE]
            return Verdict(action, "; ".join(reasons))
    if None in actions:
        return Verdict(None)
    return Verdict(
        Action.SKIP if actions == {Action.SKIP} else Action.SUCCESS, "; ".join(reason for _, reason in ends)
    )


def _named(
    program_name: str, group: str, program: ProgramConfiguration, processes: list[Process]
) -> tuple[Process, ...]:
    """Return the processes of one program, selected from all processes of the program's group."""
    known = {"program_name": program_name, "group_name": group}
    pattern, position = "", 0
    for expression in _EXPRESSION.finditer(program.process_name):
        pattern += re.escape(program.process_name[position : expression.start()])
        name = expression[1]
        pattern += re.escape(known[name]) if name in known else r"\d+" if name == "process_num" else ".+"
        position = expression.end()
    pattern += re.escape(program.process_name[position:])
    return tuple(process for process in processes if re.fullmatch(pattern, process.name))
