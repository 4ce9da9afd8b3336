"""A client with which a task on a worker, or a script, can call a supervisord."""

from __future__ import annotations

import asyncio
import codecs
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

from deferrable_ops.exceptions import InputError, SupervisordRefused
from deferrable_ops.inbox.large_values import run_sync
from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.control import register
from deferrable_ops.supervisord.processes import Process, ProcessState, processes_by_program
from deferrable_ops.triggers.supervisor.configuration import StepName, step_timeout
from deferrable_ops.triggers.supervisor.control import HOST_CONTROL
from deferrable_ops.triggers.supervisor.host import Fault, StepFailed, SupervisorHost, open_host
from deferrable_ops.triggers.supervisor.watch.process_xcoms import last_lines

T = TypeVar("T")
log = logging.getLogger(__name__)

# With the client, the methods of a configuration such as cfg.start() can be used, too.
register(HOST_CONTROL)

_CHANGING: Final = frozenset({ProcessState.STARTING, ProcessState.BACKOFF, ProcessState.STOPPING})


class LogText(NamedTuple):
    """A part of a log of a process.

    :param text: the output. Bytes that are not valid UTF-8 are replaced by the character U+FFFD.
    :param offset: the number of bytes from the beginning of the log file to the end of `text`. With this offset, the
        next call of :meth:`SupervisorClient.log` continues.
    """

    text: str
    offset: int


class SupervisorClient:
    """Calls a supervisord through supervisord's Unix socket. Each method opens its own connection.

    The supervisord must run on the caller's own host, or on another machine that the caller reaches over SSH.

    Each method raises SupervisordUnavailable if supervisord does not respond, SupervisordRefused if supervisord returns
    a fault (the exception contains the fault code), and MachineError if the machine cannot be reached.

    Most methods have the parameter `name`. The name of a program or a group selects all its processes. A name of the
    form ``group:process`` selects one process.

    :param cfg: configuration of the supervisord to call.
    """

    def __init__(self, cfg: SupervisorAirflowConfiguration) -> None:
        self._cfg = cfg

    def call(self, method: str, *arguments: Any) -> Any:
        """Call an XML-RPC method of supervisord, and return its result.

        :param method: the full name of the method, for example ``supervisor.getState``. All methods are listed in the
            documentation of supervisor.
        """
        return self._run(lambda host: host.rpc.call(method, *arguments))

    def processes(self) -> list[Process]:
        """Return all processes of supervisord, including event listeners, with their current states."""
        return self._run(SupervisorHost.processes)

    def processes_of(self, name: str) -> list[Process]:
        """Return the processes of one program, with their current states.

        :raises InputError: if supervisord has no such program, group or process.
        """
        return self._run(lambda host: _find(host, name))

    def start(self, name: str) -> list[Process]:
        """Start one program, wait until its processes have started or ended, and return the processes.

        If a process could not be started, its state is FATAL, and its ``error`` contains the reason.
        """
        return self._change(name, "start-programs", "supervisor.startProcess")

    def stop(self, name: str) -> list[Process]:
        """Stop one program, wait until its processes have stopped, and return the processes."""
        return self._change(name, "stop-programs", "supervisor.stopProcess")

    def restart(self, name: str) -> list[Process]:
        """Stop one program, start it again, wait until its processes have started or ended, and return the
        processes.
        """
        return self._change(name, "restart-programs", "supervisor.stopProcess", "supervisor.startProcess")

    def signal(self, name: str, signal: str) -> list[Process]:
        """Send a signal to the processes of one program, and return the processes.

        :param signal: name of the signal, such as HUP or USR1.
        """

        async def send(host: SupervisorHost) -> list[Process]:
            found = await _find(host, name)
            await _call(host, "supervisor.signalProcess", found, signal)
            return found

        return self._run(send)

    def log(
        self,
        name: str,
        channel: Literal["stdout", "stderr"] = "stdout",
        *,
        offset: int | None = None,
        length: int = 65536,
    ) -> LogText:
        """Return the output that a process has written to its log file.

        :param name: the name of a program that has one process, or the name ``group:process`` of a process.
        :param channel: ``stdout`` or ``stderr``.
        :param offset: the number of bytes to skip at the beginning of the log file. Without `offset`, the last `length`
            bytes are returned. If the log file is shorter than `offset`, because supervisord has rotated the log file,
            reading begins at the first byte.
        :param length: maximum number of bytes to read.
        :raises InputError: if an argument is invalid, or if the process has no such log file.
        """
        if channel not in ("stdout", "stderr"):
            raise InputError(f"channel={channel!r} is not a log; give stdout or stderr")
        if length < 1 or (offset is not None and offset < 0):
            raise InputError("length= must be above zero, and offset= must not be negative")
        return self._run(lambda host: _read_log(host, name, channel, offset, length))

    def last_lines(self, name: str) -> list[str]:
        """Return the last lines, at most 20, of a process's error log. If the error log is empty or missing, return the
        last lines of its output log. Secrets of the configuration are masked.

        :param name: the name of a program that has one process, or the name ``group:process`` of a process.
        :raises InputError: if there is no such process, or if the program has several processes.
        """

        async def read(host: SupervisorHost) -> list[str]:
            return await last_lines(host, await _find_one(host, name))

        return self._run(read)

    def _change(self, name: str, step: StepName, *methods: str) -> list[Process]:
        seconds = step_timeout(self._cfg, step)

        async def change(host: SupervisorHost) -> list[Process]:
            try:
                async with asyncio.timeout(seconds):
                    for method in methods:
                        await _call(host, method, await _find(host, name), False)
                        found = await _wait_until_settled(host, name)
                    return found
            except TimeoutError:
                raise StepFailed(
                    f"{name} was still starting or stopping after {seconds:g} s; read the program's log"
                ) from None

        return self._run(change)

    def _run(self, work: Callable[[SupervisorHost], Awaitable[T]]) -> T:
        async def run() -> T:
            async with open_host(self._cfg, log) as host:
                return await work(host)

        return run_sync(run())


async def _find(host: SupervisorHost, name: str) -> list[Process]:
    everything = await host.processes()
    found = list(processes_by_program(host.cfg, everything).get(name, ()))
    if not found:
        found = [process for process in everything if name in (process.group, process.full_name)]
    if not found:
        known = ", ".join(sorted({process.full_name for process in everything}))
        raise InputError(f"supervisord has no program {name!r}; use one of: {known}")
    return found


async def _find_one(host: SupervisorHost, name: str) -> Process:
    found = await _find(host, name)
    if len(found) > 1:
        names = ", ".join(process.full_name for process in found)
        raise InputError(f"{name!r} has {len(found)} processes, each with its own log; give one of: {names}")
    return found[0]


async def _call(host: SupervisorHost, method: str, processes: list[Process], argument: Any) -> None:
    answers = await host.rpc.multicall([(method, (process.full_name, argument)) for process in processes])
    for answer in answers:
        # A process that is started or stopped already is in the state that the caller wants.
        if isinstance(answer, SupervisordRefused) and answer.code not in _ALREADY_DONE.get(method, ()):
            raise answer


_ALREADY_DONE: Final = {
    "supervisor.startProcess": (Fault.ALREADY_STARTED,),
    "supervisor.stopProcess": (Fault.NOT_RUNNING,),
}


async def _wait_until_settled(host: SupervisorHost, name: str) -> list[Process]:
    found = await _find(host, name)
    while any(process.state in _CHANGING for process in found):
        await asyncio.sleep(host.timings.poll_interval)
        found = await _find(host, name)
    return found


async def _read_log(
    host: SupervisorHost, name: str, channel: str, offset: int | None, length: int
) -> LogText:
    process = await _find_one(host, name)
    path = process.stdout_log if channel == "stdout" else process.stderr_log
    status = (await host.machine.status(Path(path)))[0] if path else None
    if status is not None and not status.is_regular:
        raise InputError(f"the log {path} is not a regular file, so it cannot be read")
    if status is None:
        if path and not process.start:
            return LogText("", 0)
        raise InputError(f"{process.full_name} has no log file for {channel}; check {channel}_logfile")
    start = max(0, status.size - length) if offset is None else offset if offset <= status.size else 0
    data = await host.machine.read(Path(path), start, length) or b""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    # A character that is not complete yet is left to the next call.
    return LogText(text, start + len(data) - len(decoder.getstate()[0]))
