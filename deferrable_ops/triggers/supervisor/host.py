"""The host of a supervisord: the machine, the directories of supervisord, and a client for XML-RPC calls."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar, Final

from deferrable_ops.exceptions import DeferrableOpsError, SupervisordRefused, SupervisordUnavailable
from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.processes import Process
from deferrable_ops.triggers.supervisor.configuration import machine_address, supervisord_address
from deferrable_ops.upstreams.machine.machine import Machine
from deferrable_ops.upstreams.open_machine import use_machine
from deferrable_ops.upstreams.supervisord.client import Supervisord, use_supervisord

RUNNING: Final = 1
"""The state code of a supervisord that accepts calls (``states.py`` of supervisor)."""

LOCK: Final = "supervisord.lock"
"""The name of the lock file. A supervisord that a step started keeps this file locked while it runs."""

# A path at which no socket can exist.
_NO_SOCKET: Final = Path(os.devnull) / "no-supervisord"


class Fault(IntEnum):
    """Fault codes that supervisord returns if it refuses a call, from the file ``xmlrpc.py`` of the package
    supervisor.
    """

    SHUTDOWN_STATE = 6
    BAD_NAME = 10
    ALREADY_STARTED = 60
    NOT_RUNNING = 70
    ALREADY_ADDED = 90
    STILL_RUNNING = 91
    CANT_REREAD = 92


class StepFailed(DeferrableOpsError):
    """A step of a Supervisor failed. The trigger does not retry the step, but Airflow may retry the task.

    :param retryable: whether Airflow may retry the task; False if the retry would fail for the same reason.
    """

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class ShuttingDown(SupervisordUnavailable):
    """supervisord is shutting down: it stops its programs and then ends. Until it has ended, supervisord
    refuses calls.
    """


def classify_refusal(refused: SupervisordRefused) -> SupervisordRefused | SupervisordUnavailable:
    """Return ShuttingDown if supervisord refused a call because it is shutting down; otherwise return the given
    `refused`.
    """
    if refused.code == Fault.SHUTDOWN_STATE:
        return ShuttingDown("supervisord is shutting down")
    return refused


async def _allow() -> None:
    """Do nothing: every change on the host is allowed."""


@dataclass(frozen=True, slots=True)
class RunningDaemon:
    """A supervisord that is running and responds to calls.

    :param state: the state code that supervisord's method ``getState`` returns.
    """

    pid: int
    state: int


@dataclass(frozen=True, slots=True)
class StepTimings:
    """How long steps wait for supervisord and for the processes of its programs. All times are in seconds.

    :param poll_interval: time between two requests for the states of processes, while programs start or stop.
    :param search_interval: time between two searches for processes on the host.
    :param answer_timeout: the longest time from the start of supervisord to its first response.
    :param shutdown_timeout: the longest time that a supervisord without running programs needs to end after it received
        the request to end.
    :param kill_timeout: the longest time, after the ``stopwaitsecs`` of a process, that supervisord needs to kill this
        process and to notice its end.
    """

    poll_interval: float = 0.5
    search_interval: float = 0.1
    answer_timeout: float = 5.0
    shutdown_timeout: float = 10.0
    kill_timeout: float = 5.0


@dataclass(frozen=True, slots=True)
class SupervisorHost:
    """The host on which one supervisord runs or will run.

    :param rpc: the XML-RPC client for the supervisord. The client can be used even if the supervisord is not running;
        its calls then fail.
    :param log: the logger that writes to the task's log.
    :param check_claim: a function that the caller must await immediately before each change on the host. The function
        raises an exception if another process has taken over this work, for example while this process was suspended.
    """

    cfg: SupervisorAirflowConfiguration
    machine: Machine
    rpc: Supervisord
    log: Any
    check_claim: Callable[[], Awaitable[object]] = _allow

    timings: ClassVar[StepTimings] = StepTimings()
    """How long steps wait. An instance attribute would need memory for each watching task."""

    @property
    def working_dir(self) -> Path:
        """The working directory of the supervisord."""
        assert self.cfg.working_dir is not None
        return self.cfg.working_dir

    @property
    def lock(self) -> Path:
        """The path of the lock file. A supervisord that was started by a step keeps this file locked while it runs."""
        return self.working_dir / LOCK

    async def missing_directories(self) -> list[Path]:
        """Return the directories of this supervisord that do not exist. If a directory exists, check which user owns
        the directory.

        This check is needed because any user can create a missing directory in /tmp. Another user who creates the
        directory with a socket in it could read supervisord's password. Another user who creates the directory with a
        configuration file in it could run commands as supervisord's user.

        :raises MachineRefused: if another user may own one of the directories.
        """
        return await _missing_directories(self.cfg, self.machine)

    async def daemon(self) -> RunningDaemon | None:
        """Return the running supervisord; None if no supervisord responds.

        :raises ShuttingDown: if supervisord is shutting down.
        :raises SupervisordRefused: if supervisord refuses the user name and password.
        """
        try:
            state, pid = await self.rpc.multicall([("supervisor.getState", ()), ("supervisor.getPID", ())])
        except SupervisordUnavailable:
            return None
        for answer in (state, pid):
            if isinstance(answer, SupervisordRefused):
                raise classify_refusal(answer)
        return RunningDaemon(int(pid), int(state["statecode"]))

    async def has_socket(self) -> bool:
        """Return whether supervisord's socket exists on the machine.

        A supervisord whose socket was removed, for example together with its working directory, keeps running, but
        no client can connect to it again. It then only reacts to signals.
        """
        (found,) = await self.machine.status(self.cfg.socket_path)
        return found is not None

    async def processes(self) -> list[Process]:
        """Return all processes of the supervisord, with their current states.

        :raises ShuttingDown: if supervisord is shutting down.
        :raises SupervisordUnavailable: if supervisord is not running, or does not respond.
        """
        try:
            return [Process.from_info(info) for info in await self.rpc.processes()]
        except SupervisordRefused as refused:
            raise classify_refusal(refused) from None


@asynccontextmanager
async def open_host(
    cfg: SupervisorAirflowConfiguration,
    log: Any,
    check_claim: Callable[[], Awaitable[object]] = _allow,
    *,
    call_timeout: float | None = None,
) -> AsyncIterator[SupervisorHost]:
    """Connect to the host of a supervisord, and yield this host. The connection does not require that supervisord is
    running.

    :param check_claim: see :class:`SupervisorHost`. The default function allows every change on the host.
    :param call_timeout: the longest time in seconds to wait for supervisord's response to a call; None uses the default
        of :func:`use_supervisord`.

    :raises MachineUnavailable: if the machine cannot be reached now.
    :raises MachineRefused: if the machine refuses the login, or if another user may own a directory of supervisord.
    """
    async with use_machine(machine_address(cfg)) as machine:
        # If a directory is missing, our supervisord is not running. Do not connect to a socket in this directory:
        # another user may create the directory and the socket at any time.
        is_complete = not await _missing_directories(cfg, machine)
        socket = await machine.socket(cfg.socket_path) if is_complete else _NO_SOCKET
        timeout = {} if call_timeout is None else {"call_timeout": call_timeout}
        async with use_supervisord(supervisord_address(cfg, socket), **timeout) as rpc:
            yield SupervisorHost(cfg, machine, rpc, log, check_claim)


async def _missing_directories(cfg: SupervisorAirflowConfiguration, machine: Machine) -> list[Path]:
    assert cfg.working_dir is not None
    folders = sorted({cfg.working_dir, cfg.socket_path.parent, cfg.config_path.parent})
    return [folder for folder in folders if not await machine.check_directory(folder)]
