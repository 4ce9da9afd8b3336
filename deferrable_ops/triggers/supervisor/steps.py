"""The steps that the tasks of a Supervisor run. Each step is idempotent: if it is interrupted, it can be repeated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from deferrable_ops import settings
from deferrable_ops.inbox import Inbox, Wait
from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.processes import Process
from deferrable_ops.triggers.supervisor.configuration import (
    daemon_name,
    is_remote,
    serialize_configuration,
    stop_seconds,
)
from deferrable_ops.triggers.supervisor.daemon import daemon, files, programs
from deferrable_ops.triggers.supervisor.daemon.daemon import lifetime_warning
from deferrable_ops.triggers.supervisor.daemon.drift import update_groups
from deferrable_ops.triggers.supervisor.daemon.processes import end_orphans, find_daemons
from deferrable_ops.triggers.supervisor.daemon.readiness import StartSnapshot
from deferrable_ops.triggers.supervisor.host import StepFailed, SupervisorHost
from deferrable_ops.upstreams.machine.machine import Identity

StepResult = dict[str, Any]
"""The result of a step, which describes what the step found and did. The task pushes this dict as its XCom."""


class StepRunner:
    """Runs steps of a Supervisor on the host of its supervisord, for one attempt of a task or for a request.

    :param wait: the row of this attempt in the table ``waits`` of the inbox, the library's database; None for a request
        that no task makes. Steps that configure or start something need this row.
    :param restart: whether the step ``start-programs`` restarts programs that are already running.
    :param record_launch: an async function that is called before a step starts the first program. Its argument is the
        progress of the step.
    :param tears_down: if True, and supervisord still runs after the end of the DAG run, a triggerer stops supervisord.
        If ``stop_on_exit`` is False, this parameter has no effect.
    """

    def __init__(
        self,
        host: SupervisorHost,
        inbox: Inbox,
        wait: Wait | None,
        *,
        restart: bool = False,
        record_launch: Callable[[Any], Awaitable[None]] | None = None,
        tears_down: bool = True,
    ) -> None:
        self._host = host
        self._inbox = inbox
        self._wait = wait
        self._restart = restart
        self._record_launch = record_launch
        self._tears_down = tears_down

    async def run(self, step: str) -> StepResult:
        """Run the step with this name, and return its result.

        :raises StepFailed: if the step failed.
        :raises MachineUnavailable: if the machine of the supervisord cannot be reached now.
        :raises SupervisordUnavailable: if supervisord does not respond now.
        """
        identity = await self._host.machine.identity()
        await self._check_host(identity)
        if step in _CLAIMING_STEPS:
            await self._claim(identity)
        result: StepResult = {"host": identity.host, "working_dir": str(self._host.working_dir)}
        return result | await _STEP_METHODS[step](self)

    async def configure(self) -> StepResult:
        """Create the directories of supervisord, and write its configuration file."""
        written = await files.configure(self._host)
        self._host.log.info(
            "%s %s on %s",
            "Wrote" if written else "Nothing to change:",
            self._host.cfg.config_path,
            self._host.machine.name,
        )
        return {"config_path": str(self._host.cfg.config_path), "written": written}

    async def start(self) -> StepResult:
        """Start supervisord. If supervisord is already running, use the running supervisord."""
        host = self._host
        found, started = await daemon.adopt_or_start(host)
        host.log.info(
            "%s (pid %d) on %s",
            "Started supervisord" if started else "Using the running supervisord",
            found.pid,
            host.machine.name,
        )
        if started and not is_remote(host.cfg) and (reason := await lifetime_warning(host)) is not None:
            host.log.warning(
                "supervisord will end when the triggerer restarts, and a new run of this DAG will then start "
                "supervisord again. The cause: %s",
                reason,
            )
        drift = await update_groups(host)
        return {"pid": found.pid, "started": started, "drift": str(drift)}

    async def start_programs(self) -> StepResult:
        """Start the programs that are not running. If ``restart`` is true, also restart the programs that are
        running.
        """
        if await self._is_cut_off():
            raise StepFailed(
                f"the socket {self._host.cfg.socket_path} does not exist on {self._host.machine.name}, so supervisord "
                "cannot be reached; clear the tasks 'configure-supervisor' and 'start-supervisor'"
            )
        wait = self._attempt_wait
        saved = wait.progress or (await self._inbox.waits.get(wait.id)).progress
        if saved is None:
            found = await self._host.processes()
            before = StartSnapshot.of(found, restart=self._restart)
            await self._inbox.waits.save_progress(wait.id, before.as_json())
        else:
            before = StartSnapshot.from_json(saved)
        if self._record_launch is not None:
            await self._record_launch(before.as_json())
        if before.restart:
            await programs.stop_running(self._host, before)
        await update_groups(self._host)
        if (with_logs := await before.with_logs(self._host)) is not before:
            before = with_logs
            await self._inbox.waits.save_progress(wait.id, before.as_json())
        return _program_states(await programs.start_programs(self._host, before))

    async def restart_programs(self) -> StepResult:
        """Restart all programs. If supervisord is not running, do nothing, because the next DAG run starts supervisord
        and all programs.
        """
        if await self._is_gone() or await self._is_cut_off():
            self._host.log.info(
                "supervisord does not run, or its socket was removed, so there is nothing to restart; the next DAG "
                "run starts the programs"
            )
            return {"programs": {}}
        self._restart = True
        return await self.start_programs()

    async def stop_programs(self) -> StepResult:
        """Stop the programs. If supervisord is not running, end the processes of its programs that are still
        running.
        """
        if await self._is_gone():
            ended = await end_orphans(self._host, grace=stop_seconds(self._host.cfg))
            return {"programs": {}, "ended": ended}
        if await self._is_cut_off():
            self._host.log.warning(
                "The socket %s was removed, so the programs cannot be stopped alone; stopping supervisord too",
                self._host.cfg.socket_path,
            )
            return {"programs": {}, "stopped": await daemon.stop(self._host)}
        return _program_states(await programs.stop_programs(self._host))

    async def stop(self) -> StepResult:
        """Stop supervisord and all processes of its programs."""
        stopped = await daemon.stop(self._host)
        # If cleanup is set, a later step removes the files and then releases the claim.
        if not self._host.cfg.cleanup:
            await self._release()
        if stopped:
            self._host.log.info("Stopped supervisord (pid %s)", ", ".join(map(str, stopped)))
        else:
            self._host.log.info("supervisord was not running")
        return {"stopped": stopped}

    async def kill(self) -> StepResult:
        """Kill supervisord and all processes of its programs."""
        killed = await daemon.kill(self._host)
        await self._release()
        self._host.log.warning(
            "Killed supervisord and the processes of its programs, %d processes in all", len(killed)
        )
        return {"killed": killed}

    async def unconfigure(self) -> StepResult:
        """Remove the directories and the configuration file of supervisord."""
        removed = await files.unconfigure(self._host)
        await self._release()
        self._host.log.info("Removed: %s", ", ".join(removed) or "supervisord's own files")
        return {"removed": removed}

    @property
    def _attempt_wait(self) -> Wait:
        assert self._wait is not None, "a request runs no step that configures or starts something"
        return self._wait

    async def _is_gone(self) -> bool:
        return await self._host.daemon() is None and not await find_daemons(self._host)

    async def _is_cut_off(self) -> bool:
        """Return whether supervisord does not answer because its socket was removed."""
        return await self._host.daemon() is None and not await self._host.has_socket()

    async def _claim(self, identity: Identity) -> None:
        attempt = self._attempt_wait.attempt
        before = await self._inbox.daemons.claim(
            daemon_name(self._host.cfg),
            identity.host,
            identity.boot_id,
            dag_id=attempt.dag_id,
            run_id=attempt.run_id,
            allow_move=is_remote(self._host.cfg),
            details=self._details(),
        )
        current = (attempt.dag_id, identity.host, identity.boot_id)
        for other in await self._inbox.daemons.all():
            if (other.dag_id, other.host, other.boot_id) == current:
                self._warn_of_other_daemon(other.name)
        if before is None:
            return
        if before.host != identity.host:
            # Another triggerer has claimed the supervisord before this triggerer did.
            await self._check_host(identity)
            self._host.log.warning(
                "The SSH connection led to the machine %s before and leads to the machine %s now; if you did not "
                "change the connection, check its host",
                before.host,
                identity.host,
            )
        if before.dag_id != attempt.dag_id:
            self._host.log.warning(
                "The DAG %s uses this supervisord too, and each DAG stops the programs of the other DAG; give one DAG "
                "another working_dir",
                before.dag_id,
            )
        if before.boot_id != identity.boot_id:
            self._host.log.info(
                "The machine %s was rebooted after the last step, and the reboot ended supervisord",
                identity.host,
            )

    def _details(self) -> dict[str, Any]:
        cfg = self._host.cfg
        return {
            "configuration": serialize_configuration(cfg),
            "is_remote": is_remote(cfg),
            "stop_on_exit": cfg.stop_on_exit and self._tears_down,
            "programs": sorted(cfg.programs),
            "team": settings.team(),
        }

    def _warn_of_other_daemon(self, other: str) -> None:
        if other != daemon_name(self._host.cfg):
            self._host.log.warning(
                "The supervisord %s of this DAG may still run on this machine. If this DAG has a second "
                "Supervisor, ignore this warning. If the Supervisor's working_dir was changed, stop that supervisord "
                "and run `deferrable-ops supervisord forget %s`",
                other,
                other,
            )

    async def _check_host(self, identity: Identity) -> None:
        reason = await wrong_host_reason(self._inbox, self._host.cfg, identity)
        if reason is not None:
            raise StepFailed(reason, retryable=False)

    async def _release(self) -> None:
        identity = await self._host.machine.identity()
        await self._inbox.daemons.release(daemon_name(self._host.cfg), identity.host)


async def wrong_host_reason(
    inbox: Inbox, cfg: SupervisorAirflowConfiguration, identity: Identity
) -> str | None:
    """If the supervisord runs on the host of another triggerer, return the reason why this triggerer cannot manage the
    supervisord. Otherwise return None.

    :param identity: the identity of the host on which this triggerer runs.
    """
    if is_remote(cfg):
        return None
    name = daemon_name(cfg)
    claimed = await inbox.daemons.find(name)
    if claimed is None or claimed.host == identity.host:
        return None
    return (
        f"the supervisord {name} runs on {claimed.host}, but this triggerer runs on {identity.host}; set [triggerer] "
        "queues_enabled and give the tasks the queue of one triggerer, or use SupervisorSSH. If "
        f"{claimed.host} is gone for good, run `deferrable-ops supervisord forget {name}`"
    )


def _program_states(found: Iterable[Process]) -> StepResult:
    states = {process.full_name: {"state": process.state.name, "pid": process.pid} for process in found}
    return {"programs": states}


_CLAIMING_STEPS: Final = frozenset({"configure-supervisor", "start-supervisor"})
_STEP_METHODS: Final[dict[str, Callable[[StepRunner], Awaitable[StepResult]]]] = {
    "configure-supervisor": StepRunner.configure,
    "start-supervisor": StepRunner.start,
    "start-programs": StepRunner.start_programs,
    "restart-programs": StepRunner.restart_programs,
    "stop-programs": StepRunner.stop_programs,
    "stop-supervisor": StepRunner.stop,
    "unconfigure-supervisor": StepRunner.unconfigure,
    "force-kill": StepRunner.kill,
}
