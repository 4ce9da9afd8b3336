"""The host of a supervisord: the machine, supervisord's directories, and a client for supervisord's XML-RPC calls."""

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
    """Fault codes that supervisord returns, from the file ``xmlrpc.py`` of the package supervisor."""

    SHUTDOWN_STATE = 6
    BAD_NAME = 10
    ALREADY_STARTED = 60
    NOT_RUNNING = 70
    ALREADY_ADDED = 90
    STILL_RUNNING = 91
    CANT_REREAD = 92


class StepFailed(DeferrableOpsError):
    """A step of a Supervisor failed.

    :param retryable: whether Airflow may retry the task; False if the same error would occur again.
    """

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class ShuttingDown(SupervisordUnavailable):
    """supervisord stops its programs and then ends. Until supervisord has ended, it refuses calls."""


def classify_refusal(refused: SupervisordRefused) -> SupervisordRefused | SupervisordUnavailable:
    """If supervisord refused a call because it is shutting down, return ShuttingDown; otherwise return `refused`."""
    if refused.code == Fault.SHUTDOWN_STATE:
        return ShuttingDown("supervisord is shutting down")
    return refused


async def _allow() -> None:
    """Allow every change on the host."""


@dataclass(frozen=True, slots=True)
class RunningDaemon:
    """A supervisord that is running and answers calls.

    :param state: the state code that ``getState`` returns.
    """

    pid: int
    state: int


@dataclass(frozen=True, slots=True)
class StepTimings:
    """How long steps wait for supervisord and for processes of its programs. All values are in seconds.

    :param poll_interval: time between two calls that ask supervisord whether a slow operation has ended.
    :param search_interval: time between two searches for processes on the host.
    :param answer_timeout: the longest time between the start of supervisord and its first answer.
    :param shutdown_timeout: the longest time that a supervisord without programs needs to end.
    :param kill_timeout: the longest time, after ``stopwaitsecs``, that supervisord needs to kill a process and to
        notice its end.
    """

    poll_interval: float = 0.5
    search_interval: float = 0.1
    answer_timeout: float = 5.0
    shutdown_timeout: float = 10.0
    kill_timeout: float = 5.0


@dataclass(frozen=True, slots=True)
class SupervisorHost:
    """The host of one supervisord.

    :param rpc: the XML-RPC client for the supervisord; this client exists even if the supervisord is not running.
    :param log: the task's log.
    :param check_claim: a function that must be awaited immediately before each change on the host. The function raises
        an exception if another process has taken over the work of this process, for example while this process was
        suspended.
    """

    cfg: SupervisorAirflowConfiguration
    machine: Machine
    rpc: Supervisord
    log: Any
    check_claim: Callable[[], Awaitable[object]] = _allow

    timings: ClassVar[StepTimings] = StepTimings()
    """A class attribute, because an instance attribute would need memory for each watching task."""

    @property
    def working_dir(self) -> Path:
        """The working directory of the supervisord."""
        assert self.cfg.working_dir is not None
        return self.cfg.working_dir

    @property
    def lock(self) -> Path:
        """The path of the lock file, which a supervisord that a step has started keeps locked while it runs."""
        return self.working_dir / LOCK

    async def missing_directories(self) -> list[Path]:
        """Return the directories of this supervisord that do not exist. Check which user owns the other directories.

        Any user can create a missing directory in /tmp. If another user creates the missing directory with a socket in
        it, this user could read supervisord's password. If another user creates the missing directory with a
        configuration file in it, this user could run commands.

        :raises MachineRefused: if a directory may belong to another user.
        """
        return await _missing_directories(self.cfg, self.machine)

    async def daemon(self) -> RunningDaemon | None:
        """Return the running supervisord; None if no supervisord answers.

        :raises ShuttingDown: if supervisord is shutting down.
        :raises SupervisordRefused: if supervisord refuses the login.
        """
        try:
            state, pid = await self.rpc.multicall([("supervisor.getState", ()), ("supervisor.getPID", ())])
        except SupervisordUnavailable:
            return None
        for answer in (state, pid):
            if isinstance(answer, SupervisordRefused):
                raise classify_refusal(answer)
        return RunningDaemon(int(pid), int(state["statecode"]))

    async def processes(self) -> list[Process]:
        """Return the processes of all programs of the supervisord.

        :raises ShuttingDown: if supervisord is shutting down.
        :raises SupervisordUnavailable: if supervisord does not answer.
        """
        try:
            return [Process.from_info(info) for info in await self.rpc.processes()]
        except SupervisordRefused as refused:
            raise classify_refusal(refused) from None


@asynccontextmanager
async def open_host(
    cfg: SupervisorAirflowConfiguration, log: Any, check_claim: Callable[[], Awaitable[object]] = _allow
) -> AsyncIterator[SupervisorHost]:
    """Connect to the host of a supervisord. The supervisord does not have to be running.

    :param check_claim: see :class:`SupervisorHost`. By default, every change on the host is allowed.

    :raises MachineUnavailable: if the machine cannot be reached now.
    :raises MachineRefused: if the machine refuses the login, or a directory of supervisord may belong to another user.
    """
    async with use_machine(machine_address(cfg)) as machine:
        # If a directory is missing, our supervisord is not running. Do not connect to a socket in this directory:
        # another user may create the directory and the socket at any time.
        is_complete = not await _missing_directories(cfg, machine)
        socket = await machine.socket(cfg.socket_path) if is_complete else _NO_SOCKET
        async with use_supervisord(supervisord_address(cfg, socket)) as rpc:
            yield SupervisorHost(cfg, machine, rpc, log, check_claim)


async def _missing_directories(cfg: SupervisorAirflowConfiguration, machine: Machine) -> list[Path]:
    assert cfg.working_dir is not None
    folders = sorted({cfg.working_dir, cfg.socket_path.parent, cfg.config_path.parent})
    return [folder for folder in folders if not await machine.check_directory(folder)]
