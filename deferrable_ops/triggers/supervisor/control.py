"""The operations of a Supervisor's tasks, such as starting supervisord, for use outside of a DAG: in the CLI, in
scripts and on workers.

The operations do not use the inbox, the library's database. If a DAG with the same configuration runs later, its tasks
use the supervisord that an operation has started.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from deferrable_ops.inbox.large_values import run_sync
from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.processes import Process, processes_by_program
from deferrable_ops.triggers.supervisor.configuration import StepName, step_timeout, stop_seconds
from deferrable_ops.triggers.supervisor.daemon import daemon, files, programs
from deferrable_ops.triggers.supervisor.daemon.drift import update_groups
from deferrable_ops.triggers.supervisor.daemon.processes import end_orphans, find_daemons
from deferrable_ops.triggers.supervisor.daemon.readiness import StartSnapshot
from deferrable_ops.triggers.supervisor.host import StepFailed, SupervisorHost, open_host

T = TypeVar("T")
log = logging.getLogger(__name__)


class HostControl:
    """Implements :class:`~deferrable_ops.supervisord.control.DaemonControl`.

    Each method raises MachineError if the machine cannot be reached, SupervisordError if supervisord does not respond
    or refuses a call, and StepFailed if the operation failed or did not end within the timeout of its step.
    """

    def write(self, cfg: SupervisorAirflowConfiguration) -> bool:
        """See :meth:`DaemonControl.write`."""
        return _run(cfg, "configure-supervisor", files.configure)

    def start(self, cfg: SupervisorAirflowConfiguration) -> int:
        """See :meth:`DaemonControl.start`."""
        return _run(cfg, "start-supervisor", _start)

    def is_running(self, cfg: SupervisorAirflowConfiguration) -> bool:
        """See :meth:`DaemonControl.is_running`."""
        return bool(_run(cfg, "force-kill", find_daemons))

    def stop(self, cfg: SupervisorAirflowConfiguration) -> list[int]:
        """See :meth:`DaemonControl.stop`."""
        return _run(cfg, "stop-supervisor", daemon.stop)

    def kill(self, cfg: SupervisorAirflowConfiguration) -> list[int]:
        """See :meth:`DaemonControl.kill`."""
        return _run(cfg, "force-kill", daemon.kill)

    def remove(self, cfg: SupervisorAirflowConfiguration) -> list[str]:
        """See :meth:`DaemonControl.remove`."""
        return _run(cfg, "unconfigure-supervisor", files.unconfigure)

    def processes(self, cfg: SupervisorAirflowConfiguration) -> list[Process]:
        """Return the processes of all programs, without event listeners."""
        return _run(cfg, "force-kill", _own_processes)

    def start_programs(self, cfg: SupervisorAirflowConfiguration, *, restart: bool = False) -> list[Process]:
        """Start the programs that are not running, and return the processes of all programs.

        :param restart: whether programs that are running are restarted.
        """

        async def start(host: SupervisorHost) -> list[Process]:
            before = StartSnapshot.of(await host.processes(), restart=restart)
            if restart:
                await programs.stop_running(host, before)
            await update_groups(host)
            return await programs.start_programs(host, await before.with_logs(host))

        return _run(cfg, "restart-programs" if restart else "start-programs", start)

    def stop_programs(self, cfg: SupervisorAirflowConfiguration) -> list[Process]:
        """Stop the programs, and return their processes. If supervisord is not running, end the processes of its
        programs that are still running, and return an empty list.
        """
        return _run(cfg, "stop-programs", _stop_programs)


HOST_CONTROL: Final = HostControl()


async def _start(host: SupervisorHost) -> int:
    found, _ = await daemon.adopt_or_start(host)
    await update_groups(host)
    return found.pid


async def _own_processes(host: SupervisorHost) -> list[Process]:
    found = processes_by_program(host.cfg, await host.processes())
    return [process for processes in found.values() for process in processes]


async def _stop_programs(host: SupervisorHost) -> list[Process]:
    if await host.daemon() is None and not await find_daemons(host):
        await end_orphans(host, grace=stop_seconds(host.cfg))
        return []
    return await programs.stop_programs(host)


def _run(
    cfg: SupervisorAirflowConfiguration, step: StepName, work: Callable[[SupervisorHost], Awaitable[T]]
) -> T:
    seconds = step_timeout(cfg, step)

    async def run() -> T:
        try:
            async with asyncio.timeout(seconds), open_host(cfg, log) as host:
                return await work(host)
        except TimeoutError:
            raise StepFailed(f"{step} did not end within {seconds:g} s; raise command_timeout") from None

    return run_sync(run())
