"""Where a step works: a configuration, the machine it is for, and the supervisord that may answer there."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deferrable_ops.exceptions import DeferrableOpsError, SupervisordRefused, SupervisordUnavailable
from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.processes import Process
from deferrable_ops.triggers.supervisor.configuration import machine_address, supervisord_address
from deferrable_ops.upstreams.machine.machine import Machine
from deferrable_ops.upstreams.open_machine import use_machine
from deferrable_ops.upstreams.supervisord.client import Supervisord, use_supervisord

RUNNING: Final = 1
"""The state of a supervisord that does what it is asked (supervisor's ``states.py``)."""

SHUTTING_DOWN: Final = 6
"""The fault of a supervisord that does nothing any more (supervisor's ``xmlrpc.py``)."""

_NOWHERE: Final = Path(os.devnull) / "no-supervisord"  # no socket can be there

POLL_SECONDS: Final = 0.5
"""Seconds between two looks at something that takes its time."""


class StepFailed(DeferrableOpsError):
    """A step cannot be taken.

    :param retryable: False where trying again will not help.
    """

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class ShuttingDown(SupervisordUnavailable):
    """A supervisord stops its programs, and then itself. It answers nothing any more but that."""


def classify_refusal(refused: SupervisordRefused) -> SupervisordRefused | SupervisordUnavailable:
    """Return what to raise where supervisord refuses something."""
    return ShuttingDown("supervisord is shutting down") if refused.code == SHUTTING_DOWN else refused


LOCK: Final = "supervisord.lock"
"""The name of the file that a daemon holds locked."""


async def _allow() -> None:
    """Raise nothing."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """A supervisord that answers.

    :param state: as ``getState`` tells it.
    """

    pid: int
    state: int


@dataclass(frozen=True, slots=True)
class SupervisorHost:
    """A supervisord's place.

    :param rpc: reaches it, when it is there.
    :param log: the task's log.
    :param check: raises when it is not this process's any more to change anything there. It is awaited immediately
        before each change: a process that was stopped for a while must not end what another has begun meanwhile.
    """

    cfg: SupervisorAirflowConfiguration
    machine: Machine
    rpc: Supervisord
    log: Any
    check: Callable[[], Awaitable[object]] = _allow

    @property
    def folder(self) -> Path:
        """The daemon's own directory."""
        assert self.cfg.working_dir is not None
        return self.cfg.working_dir

    @property
    def lock(self) -> Path:
        """The file that the daemon holds locked for as long as it lives, if a step has started it."""
        return self.folder / LOCK

    async def check_place(self) -> list[Path]:
        """Check that nobody else has made what stands here, and return those of its directories that are missing.

        In /tmp anybody may make one that is not there, with a socket that wants the password and a file that is run.

        :raises MachineRefused: one of them may be another's.
        """
        return await missing_of(self.cfg, self.machine)

    async def daemon(self) -> Daemon | None:
        """Return the supervisord that answers; None when none does.

        :raises ShuttingDown: it is about to end.
        :raises SupervisordRefused: it does not let us in.
        """
        try:
            state, pid = await self.rpc.multicall([("supervisor.getState", ()), ("supervisor.getPID", ())])
        except SupervisordUnavailable:
            return None
        for answer in (state, pid):
            if isinstance(answer, SupervisordRefused):
                raise classify_refusal(answer)
        return Daemon(int(pid), int(state["statecode"]))

    async def processes(self) -> list[Process]:
        """Return all processes of the supervisord.

        :raises SupervisordUnavailable: it does not answer; ShuttingDown: it is about to end.
        """
        try:
            return [Process.from_info(info) for info in await self.rpc.processes()]
        except SupervisordRefused as refused:
            raise classify_refusal(refused) from None


async def missing_of(cfg: SupervisorAirflowConfiguration, machine: Machine) -> list[Path]:
    """Return the directories that are missing; see :meth:`SupervisorHost.check_place`."""
    assert cfg.working_dir is not None
    folders = sorted({cfg.working_dir, cfg.socket_path.parent, cfg.config_path.parent})
    return [folder for folder in folders if not await machine.check_directory(folder)]


@asynccontextmanager
async def open_host(
    cfg: SupervisorAirflowConfiguration, log: Any, check: Callable[[], Awaitable[object]] = _allow
) -> AsyncIterator[SupervisorHost]:
    """Go to the place of a configuration's supervisord, whether or not one runs there.

    :param check: see :class:`SupervisorHost`; by default whoever comes may change what is there.

    :raises MachineUnavailable: the machine cannot be reached now.
    :raises MachineRefused: it will not let us in, or a directory there may be another user's.
    """
    async with use_machine(machine_address(cfg)) as machine:
        # Where a directory is missing there is no supervisord of ours, and whoever makes it now is not asked.
        is_there = not await missing_of(cfg, machine)
        socket = await machine.socket(cfg.socket_path) if is_there else _NOWHERE
        async with use_supervisord(supervisord_address(cfg, socket)) as rpc:
            yield SupervisorHost(cfg, machine, rpc, log, check)
