"""The programs of a supervisord: started, started anew, and stopped, with one question an interval while they do.

Which processes are to be started is fixed at the first look and kept, so that a step which is taken again, because its
triggerer was killed, starts nothing twice: not even a program that has ended meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from deferrable_ops.exceptions import SupervisordRefused
from deferrable_ops.supervisord.policy import Action
from deferrable_ops.supervisord.processes import ALIVE, Process, ProcessState, processes_by_program
from deferrable_ops.triggers.supervisor.configuration import stop_seconds
from deferrable_ops.triggers.supervisor.host import (
    POLL_SECONDS,
    SHUTTING_DOWN,
    StepFailed,
    SupervisorHost,
    classify_refusal,
)

_STARTED_ALREADY: Final = 60  # faults of supervisor's xmlrpc.py
_NOT_RUNNING: Final = 70
_ON_ITS_WAY: Final = frozenset({ProcessState.STARTING, ProcessState.BACKOFF, ProcessState.STOPPING})
_MORE_TO_STOP: Final = 5.0  # seconds, until supervisord has killed one and seen its end
_STOPPABLE: Final = ALIVE - {ProcessState.STOPPING}
_FAILURES: Final = frozenset({Action.FAIL, Action.RETRY})  # the others are what the watching task ends with


@dataclass(frozen=True, slots=True)
class Before:
    """What the processes were before a step began with them.

    :param starts: when each was started last, by full name, in whole seconds by supervisord's clock; 0: never.
    :param restart: those that ran are started anew.
    """

    starts: Mapping[str, int]
    restart: bool

    @classmethod
    def of(cls, processes: Iterable[Process], *, restart: bool) -> Self:
        """Return it as it is now."""
        return cls({process.full_name: process.start for process in processes}, restart)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return what :meth:`as_json` wrote."""
        return cls(dict(data["starts"]), bool(data["restart"]))

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {"starts": dict(self.starts), "restart": self.restart}

    def is_new(self, process: Process) -> bool:
        """Return whether a process was started since."""
        return process.start > self.starts.get(process.full_name, 0)


async def programs(host: SupervisorHost) -> list[Process]:
    """Return the processes of the configuration's programs, in the order in which they are started.

    :raises StepFailed: supervisord does not know one of the programs.
    """
    found = processes_by_program(host.cfg, await host.processes())
    for name, program in host.cfg.programs.items():
        if len(found[name]) < program.numprocs:
            raise StepFailed(
                f"supervisord knows {len(found[name])} of the {program.numprocs} processes of {name!r}; clear the "
                "tasks configure-supervisor and start-supervisor"
            )
    by_priority = sorted(host.cfg.programs.items(), key=lambda item: item[1].priority)
    return [process for name, _ in by_priority for process in found[name]]


async def stop_running(host: SupervisorHost, before: Before) -> None:
    """Stop those that a restart starts anew, and return when they are."""
    while old := [process for process in await programs(host) if not before.is_new(process)]:
        if not await _stopping(host, old):
            return
        await asyncio.sleep(POLL_SECONDS)


async def start_programs(host: SupervisorHost, before: Before) -> list[Process]:
    """Start those that do not run, and return all when each has started or ended.

    :raises StepFailed: one cannot be started, or its policy says that the task fails.
    """
    asked: set[str] = set()
    while True:
        found = await programs(host)
        due = [process for process in found if process.state not in ALIVE and not before.is_new(process)]
        due = [process for process in due if process.full_name not in asked]
        if due:
            asked.update(process.full_name for process in due)
            await _call(host, "supervisor.startProcess", due, _STARTED_ALREADY)
        elif not any(process.state in _ON_ITS_WAY for process in found):
            _check_started(host, found)
            return found
        await asyncio.sleep(POLL_SECONDS)


async def stop_programs(host: SupervisorHost) -> list[Process]:
    """Stop the configuration's programs at once, and return their processes when they have stopped.

    Each has the time that it was promised: supervisord kills it after that.

    :raises StepFailed: one was promised more than this configuration says, by the one that runs.
    """

    async def own() -> list[Process]:
        found = processes_by_program(host.cfg, await host.processes())
        return [process for processes in found.values() for process in processes]

    return await _until_stopped(host, own)


async def stop_everything(host: SupervisorHost) -> None:
    """Stop all processes at once, those of other configurations too. Event listeners go on until supervisord ends.

    :raises StepFailed: one was promised more time than this configuration says.
    """

    async def everything() -> list[Process]:
        return [process for process in await host.processes() if process.group not in host.cfg.eventlistener]

    await _until_stopped(host, everything)


async def _until_stopped(host: SupervisorHost, look: Callable[[], Awaitable[list[Process]]]) -> list[Process]:
    seconds = stop_seconds(host.cfg)
    give_up_at = time.monotonic() + seconds + _MORE_TO_STOP
    while await _stopping(host, found := await look()):
        if time.monotonic() >= give_up_at:
            names = ", ".join(process.full_name for process in found if process.state in ALIVE)
            raise StepFailed(f"{names} did not stop within the {seconds:g} s of this configuration")
        await asyncio.sleep(POLL_SECONDS)
    return found


async def _stopping(host: SupervisorHost, processes: list[Process]) -> bool:
    """Tell those that run to stop; return whether any has not yet."""
    due = [process for process in processes if process.state in _STOPPABLE]
    if due:
        await _call(host, "supervisor.stopProcess", due, _NOT_RUNNING)
    return any(process.state in ALIVE for process in processes)


async def _call(host: SupervisorHost, method: str, processes: list[Process], fine: int) -> None:
    """Ask supervisord to start or to stop processes, without waiting for that.

    :param fine: the fault that says that it is so already.
    """
    await host.check()
    answers = await host.rpc.multicall([(method, (process.full_name, False)) for process in processes])
    refused = {
        process.full_name: answer
        for process, answer in zip(processes, answers, strict=True)
        if isinstance(answer, SupervisordRefused) and answer.code != fine
    }
    for answer in refused.values():
        if answer.code == SHUTTING_DOWN:
            raise classify_refusal(answer)
    if refused:
        raise StepFailed("; ".join(f"{name}: {answer}" for name, answer in refused.items()))


def _check_started(host: SupervisorHost, found: list[Process]) -> None:
    own = processes_by_program(host.cfg, found)
    dead = [
        (process, host.cfg.policy_of(name).otherwise)
        for name, processes in own.items()
        for process in processes
        if process.state in (ProcessState.FATAL, ProcessState.UNKNOWN, ProcessState.STOPPED)
    ]
    failed = [(process, action) for process, action in dead if action in _FAILURES]
    if failed:
        reasons = "; ".join(f"{process.full_name} {process.end}" for process, _ in failed)
        raise StepFailed(reasons, retryable=all(action is not Action.FAIL for _, action in failed))
