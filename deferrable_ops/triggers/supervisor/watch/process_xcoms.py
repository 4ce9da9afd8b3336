"""The XComs ``supervisor_process_status`` and ``supervisor_failure``, which show the states of processes.

The value of each XCom is a list with one dict for each process. The keys ``name``, ``group``, ``state``,
``exitstatus``, ``spawnerr`` and ``pid`` are those of airflow-supervisor.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from deferrable_ops.exceptions import DeferrableOpsError
from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.policy import Action
from deferrable_ops.supervisord.processes import Process, interpret_end
from deferrable_ops.throttle import Throttle
from deferrable_ops.triggers.lifecycle import background
from deferrable_ops.triggers.supervisor.configuration import mask_secrets
from deferrable_ops.triggers.supervisor.host import SupervisorHost

STATUS: Final = "supervisor_process_status"
FAILURE: Final = "supervisor_failure"

# An XCom must stay small, because Airflow's database stores it.
_MAX_PROCESSES: Final = 200
_MAX_FAILURES: Final = 20
_LAST_LINES: Final = 20
_LAST_BYTES: Final = 8192
_LONGEST_LINE: Final = 500

_ENDS_WELL: Final = (None, Action.SUCCESS, Action.SKIP)

# Limits how many values exist at the same time, because hundreds of tasks may start together. The process would never
# free the memory of their values.
_pushing = Throttle(3)

Programs = Mapping[str, tuple[Process, ...]]
Push = Callable[[str, Any], Awaitable[None]]


def statuses(found: Programs) -> list[dict[str, Any]]:
    """Return the value of the XCom ``supervisor_process_status``.

    :param found: the processes of each program, by the program's name.
    """
    rows = [status_of(name, process) for name, own in found.items() for process in own]
    return rows[:_MAX_PROCESSES]


async def failures(host: SupervisorHost, found: Programs) -> list[dict[str, Any]]:
    """Return the value of the XCom ``supervisor_failure``: the processes whose end is a failure according to their
    policies. Each dict also has ``last_lines``, a list with the last lines of the process's error log and output log.

    If no process has failed, for example because supervisord itself has ended, return all processes.
    """
    failed = failed_processes(host.cfg, found)
    return [
        status_of(name, process) | {"last_lines": await last_lines(host, process)}
        for name, process in failed[:_MAX_FAILURES]
    ]


def failed_processes(cfg: SupervisorAirflowConfiguration, found: Programs) -> list[tuple[str, Process]]:
    """Return the processes whose end is a failure, each with the name of its program. If no process has failed, return
    all processes.
    """
    everything = [(name, process) for name, own in found.items() for process in own]
    failed = [
        (name, process)
        for name, process in everything
        if interpret_end(process, cfg.programs[name], cfg.policy_of(name)) not in _ENDS_WELL
    ]
    return failed or everything


async def last_lines(host: SupervisorHost, process: Process) -> list[str]:
    """Return the last lines that a process has written to its error log. If the error log is empty or missing, return
    the last lines of the output log. Secrets of the configuration are masked.
    """
    for path in (process.stderr_log, process.stdout_log):
        try:
            data = await _read_end(host, path) if path else b""
        except DeferrableOpsError:
            # The machine cannot be reached, or the log is not a regular file.
            continue
        text = mask_secrets(data.decode(errors="replace"), host.cfg) if data else ""
        lines = [line[:_LONGEST_LINE] for line in text.splitlines() if line.strip()]
        if lines:
            return lines[-_LAST_LINES:]
    return []


class ProcessXComs:
    """Pushes the XComs of the task that watches the programs.

    The task never waits for a push of ``supervisor_process_status``. At most one such push runs at a time, and a push
    begins at least :attr:`push_every` seconds after the previous one.

    :param push: an async function that sets an XCom of the task.
    :param log: the task's logger.
    """

    push_every: ClassVar[float] = 30.0
    """The shortest time between two pushes of ``supervisor_process_status``, in seconds."""

    __slots__ = ("_facts", "_lock", "_log", "_push", "_pushed_at")

    def __init__(self, push: Push, log: Any) -> None:
        self._push = push
        self._log = log
        self._facts: Any = ()
        self._pushed_at = float("-inf")
        # Held during a push of the states, so that older states never replace newer ones.
        self._lock = asyncio.Lock()

    def show(self, facts: Any, found: Programs) -> None:
        """Push the states of the processes in the background, if the states have changed and the last push is old
        enough. If the last push is too recent, a later call pushes the states.

        :param facts: a value that is equal for equal states of all processes; None if the states are unknown.
        """
        now = time.monotonic()
        if facts == self._facts or self._lock.locked() or now < self._pushed_at + self.push_every:
            return
        self._facts, self._pushed_at = facts, now
        background.detach(self._push_statuses(found))

    async def finish(self, facts: Any, found: Programs) -> None:
        """Push the final states of the processes, if the states have changed since the last push."""
        if facts != self._facts:
            self._facts = facts
            await self._push_statuses(found)

    async def fail(self, host: SupervisorHost, found: Programs) -> None:
        """Push the XCom ``supervisor_failure`` with the failed processes and the last lines of their logs."""
        await self._safely(FAILURE, await failures(host, found))

    async def _push_statuses(self, found: Programs) -> None:
        async with self._lock:
            with _pushing.slot() as granted:
                await granted
                await self._safely(STATUS, statuses(found))

    async def _safely(self, key: str, value: Any) -> None:
        try:
            await self._push(key, value)
        except Exception as error:
            self._log.warning("Could not push the XCom %r: %s", key, type(error).__name__)


def status_of(program: str, process: Process) -> dict[str, Any]:
    """Return the state of one process as a dict for an XCom."""
    return {
        "program": program,
        "name": process.name,
        "group": process.group,
        "state": process.state.name,
        "exitstatus": process.exit_code,
        "spawnerr": process.error,
        "pid": process.pid,
    }


async def _read_end(host: SupervisorHost, path: str) -> bytes:
    (status,) = await host.machine.status(Path(path))
    if status is None or not status.is_regular:
        return b""
    return await host.machine.read(Path(path), max(0, status.size - _LAST_BYTES), _LAST_BYTES) or b""
