"""The steps of a supervisord's tasks. Each comes to the same state however often it is cut off and taken again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from deferrable_ops.inbox import Inbox, Wait
from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.processes import Process
from deferrable_ops.triggers.supervisor.configuration import daemon_name, is_remote, stop_seconds
from deferrable_ops.triggers.supervisor.daemon import daemon, files, programs
from deferrable_ops.triggers.supervisor.daemon.daemon import lifetime_warning
from deferrable_ops.triggers.supervisor.daemon.drift import update_groups
from deferrable_ops.triggers.supervisor.daemon.processes import end_orphans, find_daemons
from deferrable_ops.triggers.supervisor.daemon.programs import Before
from deferrable_ops.triggers.supervisor.host import StepFailed, SupervisorHost
from deferrable_ops.upstreams.machine.machine import Identity

Told = dict[str, Any]


class Steps:
    """The steps at one place, taken for one task.

    :param wait: the task's.
    :param restart: ``start-programs`` starts those anew that run already.
    """

    def __init__(self, host: SupervisorHost, inbox: Inbox, wait: Wait, *, restart: bool = False) -> None:
        self._host = host
        self._inbox = inbox
        self._wait = wait
        self._restart = restart

    async def take(self, step: str) -> Told:
        """Take one of the steps, and return what it found and did: the task's XCom.

        :raises StepFailed: it cannot be taken.
        :raises MachineUnavailable: the machine cannot be reached now.
        :raises SupervisordUnavailable: supervisord does not answer now.
        """
        here = await self._host.machine.identity()
        await self._check_host(here)
        if step in _CLAIMING:
            await self._claim(here)
        told: Told = {"host": here.host, "working_dir": str(self._host.folder)}
        return told | await _STEPS[step](self)

    async def configure(self) -> Told:
        """Make the directories and the file."""
        written = await files.configure(self._host)
        self._host.log.info(
            "%s %s on %s",
            self._host.cfg.config_path,
            "is written" if written else "is as it should be",
            self._host.machine.name,
        )
        return {"config_path": str(self._host.cfg.config_path), "written": written}

    async def start(self) -> Told:
        """Adopt the supervisord that runs, or start one."""
        host = self._host
        found, started = await daemon.adopt_or_start(host)
        host.log.info(
            "supervisord (pid %d) %s on %s", found.pid, "is started" if started else "runs", host.machine.name
        )
        if started and not is_remote(host.cfg) and (reason := await lifetime_warning(host)) is not None:
            host.log.warning("supervisord ends when the triggerer restarts, and is started again: %s", reason)
        drift = await update_groups(host)
        return {"pid": found.pid, "started": started, "drift": str(drift)}

    async def start_programs(self) -> Told:
        """Start the programs that do not run; those that do stay, unless they shall be started anew."""
        kept = self._wait.progress or (await self._inbox.waits.get(self._wait.id)).progress
        if kept is None:
            found = await self._host.processes()
            before = Before.of(found, restart=self._restart)
            await self._inbox.waits.save_progress(self._wait.id, before.as_json())
        else:
            before = Before.from_json(kept)
        if before.restart:
            await programs.stop_running(self._host, before)
        await update_groups(self._host)
        return _told(await programs.start_programs(self._host, before))

    async def restart_programs(self) -> Told:
        """Start all programs anew; where supervisord is gone, that is the next run's to do."""
        if await self._is_gone():
            self._host.log.info("supervisord does not run; the next run starts it, and the programs")
            return {"programs": {}}
        self._restart = True
        return await self.start_programs()

    async def stop_programs(self) -> Told:
        """Stop the programs; where supervisord is gone, what it has left of them."""
        if await self._is_gone():
            ended = await end_orphans(self._host, grace=stop_seconds(self._host.cfg))
            return {"programs": {}, "ended": ended}
        return _told(await programs.stop_programs(self._host))

    async def stop(self) -> Told:
        """Stop the supervisord, and all that is left of its programs."""
        stopped = await daemon.stop(self._host)
        if not self._host.cfg.cleanup:  # otherwise its files are there still
            await self._release()
        self._host.log.info("supervisord %s", f"(pid {stopped}) is stopped" if stopped else "does not run")
        return {"stopped": stopped}

    async def kill(self) -> Told:
        """Kill the supervisord, and all that is left of its programs."""
        killed = await daemon.kill(self._host)
        await self._release()
        self._host.log.warning("%d processes were killed", len(killed))
        return {"killed": killed}

    async def unconfigure(self) -> Told:
        """Remove the directories and the file."""
        removed = await files.unconfigure(self._host)
        await self._release()
        self._host.log.info("Removed: %s", ", ".join(removed) or "supervisord's own files")
        return {"removed": removed}

    async def _is_gone(self) -> bool:
        return await self._host.daemon() is None and not await find_daemons(self._host)

    async def _claim(self, here: Identity) -> None:
        attempt = self._wait.attempt
        before = await self._inbox.daemons.claim(
            daemon_name(self._host.cfg),
            here.host,
            here.boot_id,
            dag_id=attempt.dag_id,
            run_id=attempt.run_id,
            allow_move=is_remote(self._host.cfg),
        )
        for other in await self._inbox.daemons.all():
            if (other.dag_id, other.host, other.boot_id) == (attempt.dag_id, here.host, here.boot_id):
                self._tell_of(other.name)
        if before is None:
            return
        if before.host != here.host:
            await self._check_host(here)  # another was quicker
            self._host.log.warning("This connection led to %s before, and now to %s", before.host, here.host)
        if before.dag_id != attempt.dag_id:
            self._host.log.warning(
                "The DAG %s uses this supervisord too: they stop each other's programs; give one another working_dir",
                before.dag_id,
            )
        if before.boot_id != here.boot_id:
            self._host.log.info("%s was started again since; supervisord ended with it", here.host)

    def _tell_of(self, other: str) -> None:
        if other != daemon_name(self._host.cfg):
            self._host.log.warning(
                "The supervisord %s of this DAG may still run here: its working_dir was changed, or it has a second "
                "Supervisor; unless it has, stop that one and run `deferrable-ops supervisord forget %s`",
                other,
                other,
            )

    async def _check_host(self, here: Identity) -> None:
        elsewhere = await wrong_host_reason(self._inbox, self._host.cfg, here)
        if elsewhere is not None:
            raise StepFailed(elsewhere, retryable=False)

    async def _release(self) -> None:
        here = await self._host.machine.identity()
        await self._inbox.daemons.release(daemon_name(self._host.cfg), here.host)


async def wrong_host_reason(inbox: Inbox, cfg: SupervisorAirflowConfiguration, here: Identity) -> str | None:
    """Return why nothing can be done from here with a local supervisord; None where it lives here, or nowhere.

    :param here: the triggerer's host.
    """
    if is_remote(cfg):
        return None
    name = daemon_name(cfg)
    claimed = await inbox.daemons.find(name)
    if claimed is None or claimed.host == here.host:
        return None
    return (
        f"the supervisord {name} lives on {claimed.host}, and this triggerer runs on {here.host}: pin the tasks of a "
        "local supervisord to one triggerer by a queue ([triggerer] queues_enabled), or use SupervisorSSH. Where "
        f"{claimed.host} is gone for good, run `deferrable-ops supervisord forget {name}`"
    )


def _told(found: Iterable[Process]) -> Told:
    states = {process.full_name: {"state": process.state.name, "pid": process.pid} for process in found}
    return {"programs": states}


_CLAIMING: Final = frozenset({"configure-supervisor", "start-supervisor"})
_STEPS: Final[dict[str, Callable[[Steps], Awaitable[Told]]]] = {
    "configure-supervisor": Steps.configure,
    "start-supervisor": Steps.start,
    "start-programs": Steps.start_programs,
    "restart-programs": Steps.restart_programs,
    "stop-programs": Steps.stop_programs,
    "stop-supervisor": Steps.stop,
    "unconfigure-supervisor": Steps.unconfigure,
    "force-kill": Steps.kill,
}
