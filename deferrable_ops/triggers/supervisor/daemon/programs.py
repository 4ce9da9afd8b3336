"""Starts, restarts and stops the programs of a supervisord. Polls supervisord until the programs have started or
stopped.

Before a step starts programs, it saves the start times of all processes in the inbox. If the triggerer is killed,
another triggerer repeats the step with the saved start times. So no program is started twice, not even a program that
has ended in the meantime.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Final

from deferrable_ops.exceptions import SupervisordRefused
from deferrable_ops.supervisord.policy import Action
from deferrable_ops.supervisord.processes import ALIVE, Process, ProcessState, processes_by_program
from deferrable_ops.triggers.supervisor.configuration import stop_seconds
from deferrable_ops.triggers.supervisor.daemon.readiness import CHANGING, NotReady, StartOrder, StartSnapshot
from deferrable_ops.triggers.supervisor.host import (
    Fault,
    StepFailed,
    SupervisorHost,
    classify_refusal,
)

_STOPPABLE: Final = ALIVE - {ProcessState.STOPPING}
NOT_STARTED: Final = frozenset({ProcessState.FATAL, ProcessState.UNKNOWN, ProcessState.STOPPED})
"""The states of a process that was to be started, but could not be started."""

# If the end of a program requires one of these actions, the step fails. The task that watches the programs handles the
# other actions.
_FAILURES: Final = frozenset({Action.FAIL, Action.RETRY})


async def read_programs(host: SupervisorHost, only: Collection[str] | None = None) -> list[Process]:
    """Return the processes of all programs in the configuration, in the order in which supervisord starts them.

    :param only: the names of the programs whose processes are returned; None means all programs.
    :raises StepFailed: if supervisord has not loaded one of the programs.
    """
    found = processes_by_program(host.cfg, await host.processes())
    for name, program in host.cfg.programs.items():
        if len(found[name]) < program.numprocs:
            raise StepFailed(
                f"supervisord has loaded only {len(found[name])} of the {program.numprocs} processes of {name!r}; "
                "clear the tasks 'configure-supervisor' and 'start-supervisor'"
            )
    by_priority = sorted(host.cfg.programs.items(), key=lambda item: item[1].priority)
    return [process for name, _ in by_priority if only is None or name in only for process in found[name]]


async def stop_running(host: SupervisorHost, before: StartSnapshot) -> None:
    """Stop the processes that were started before the snapshot was taken, and wait until they have stopped."""
    while old := [process for process in await read_programs(host) if not before.is_new(process)]:
        if not await _stop(host, old):
            return
        await asyncio.sleep(host.timings.poll_interval)


async def start_programs(host: SupervisorHost, before: StartSnapshot) -> list[Process]:
    """Start the programs that are not running, wait until each process has started or ended and each program is ready,
    and return the processes of all programs.

    A program is started when the programs in its ``after`` are ready. A program that is not ready in time is stopped,
    so that a retry of the step starts it again.

    :param before: the snapshot from :meth:`StartSnapshot.with_logs`, which the caller has saved.
    :raises NotReady: if a program was not ready within its ``ready_timeout``.
    :raises StepFailed: if a program could not be started; or if a program has ended, and the action of its policy for
        this end is FAIL or RETRY.
    """
    order = StartOrder(host, before, host.cfg.programs)
    while True:
        found = await read_programs(host)
        try:
            due = await order.next(found)
        except NotReady as late:
            await _stop_and_wait(host, partial(read_programs, host, late.reasons))
            raise
        if due:
            await _call(host, "supervisor.startProcess", due, Fault.ALREADY_STARTED)
        elif not order.is_waiting and not any(process.state in CHANGING for process in found):
            order.check_blocked()
            _check_started(host, found)
            return found
        await asyncio.sleep(host.timings.poll_interval)


async def stop_programs(host: SupervisorHost) -> list[Process]:
    """Stop all programs of the configuration at the same time, wait until they have stopped, and return all their
    processes.

    Each process has ``stopwaitsecs`` seconds to stop. After this time, supervisord kills the
    process.

    :raises StepFailed: if a process did not stop within the ``stopwaitsecs`` of this configuration, because supervisord
        started the process with a longer ``stopwaitsecs``.
    """

    async def own() -> list[Process]:
        found = processes_by_program(host.cfg, await host.processes())
        return [process for processes in found.values() for process in processes]

    return await _stop_and_wait(host, own)


async def restart_program(host: SupervisorHost, program: str) -> list[Process]:
    """Restart the processes of one program, one after the other, and return them when they have started or ended.

    supervisord stops and starts a process within one call. So a task that watches the programs never sees the process
    as stopped. A process that does not run is started.

    :param host: the host of the supervisord. The timeout of its calls must be longer than the program needs to stop.
    :raises StepFailed: if the configuration or supervisord has no such program, or if supervisord refuses the restart.
    """

    async def own() -> list[Process]:
        return [*processes_by_program(host.cfg, await host.processes()).get(program, ())]

    found = await own()
    if not found:
        raise StepFailed(
            f"supervisord has no program {program!r}; it has {', '.join(sorted(host.cfg.programs))}"
        )
    for name in (process.full_name for process in found):
        await host.check_claim()
        stopped, started = await host.rpc.multicall(
            [("supervisor.stopProcess", (name, True)), ("supervisor.startProcess", (name, False))]
        )
        for answer, ignored in ((stopped, Fault.NOT_RUNNING), (started, Fault.ALREADY_STARTED)):
            if isinstance(answer, SupervisordRefused) and answer.code != ignored:
                raise StepFailed(f"{name}: {answer}")
    while True:
        found = await own()
        if not any(process.state in CHANGING for process in found):
            return found
        await asyncio.sleep(host.timings.poll_interval)


async def stop_everything(host: SupervisorHost) -> None:
    """Stop all processes of supervisord at the same time, including programs that are not in the task's configuration.

    Event listeners keep running until supervisord ends.

    :raises StepFailed: if a process did not stop within the ``stopwaitsecs`` of this configuration, because supervisord
        started the process with a longer ``stopwaitsecs``.
    """

    async def everything() -> list[Process]:
        return [process for process in await host.processes() if process.group not in host.cfg.eventlistener]

    await _stop_and_wait(host, everything)


async def _stop_and_wait(host: SupervisorHost, read: Callable[[], Awaitable[list[Process]]]) -> list[Process]:
    seconds = stop_seconds(host.cfg)
    give_up_at = time.monotonic() + seconds + host.timings.kill_timeout
    while await _stop(host, found := await read()):
        if time.monotonic() >= give_up_at:
            names = ", ".join(process.full_name for process in found if process.state in ALIVE)
            raise StepFailed(
                f"{names} did not stop within {seconds:g} s, the longest stopwaitsecs in this configuration; raise "
                "stopwaitsecs of the programs, or clear the DAG's task 'force-kill', which kills supervisord"
            )
        await asyncio.sleep(host.timings.poll_interval)
    return found


async def _stop(host: SupervisorHost, processes: list[Process]) -> bool:
    """Request supervisord to stop those of the given processes that are running. Return whether any of the given
    processes is still running.
    """
    due = [process for process in processes if process.state in _STOPPABLE]
    if due:
        await _call(host, "supervisor.stopProcess", due, Fault.NOT_RUNNING)
    return any(process.state in ALIVE for process in processes)


async def _call(host: SupervisorHost, method: str, processes: list[Process], ignored: Fault) -> None:
    """Request supervisord to start or to stop processes, without waiting until they have started or stopped.

    :param ignored: the fault code that supervisord returns for a process that is already started or stopped; this fault
        is not an error here.
    """
    await host.check_claim()
    answers = await host.rpc.multicall([(method, (process.full_name, False)) for process in processes])
    refused = {
        process.full_name: answer
        for process, answer in zip(processes, answers, strict=True)
        if isinstance(answer, SupervisordRefused) and answer.code != ignored
    }
    for answer in refused.values():
        if answer.code == Fault.SHUTDOWN_STATE:
            raise classify_refusal(answer)
    if refused:
        raise StepFailed("; ".join(f"{name}: {answer}" for name, answer in refused.items()))


def _check_started(host: SupervisorHost, found: list[Process]) -> None:
    own = processes_by_program(host.cfg, found)
    dead = [
        (process, host.cfg.policy_of(name).otherwise)
        for name, processes in own.items()
        for process in processes
        if process.state in NOT_STARTED
    ]
    failed = [(process, action) for process, action in dead if action in _FAILURES]
    if failed:
        reasons = "; ".join(f"{process.full_name} {process.end}" for process, _ in failed)
        raise StepFailed(reasons, retryable=all(action is not Action.FAIL for _, action in failed))
