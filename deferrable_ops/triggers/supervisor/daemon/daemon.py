"""One supervisord for a configuration: adopted where it runs, started where it does not, stopped, and killed."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import sys
import time
from pathlib import Path
from typing import Final

from deferrable_ops.exceptions import MachineUnavailable, SupervisordRefused, SupervisordUnavailable
from deferrable_ops.triggers.supervisor.configuration import is_remote, mask_secrets, stop_seconds
from deferrable_ops.triggers.supervisor.daemon.processes import (
    KEEP_LOCK,
    LOCKED,
    NO_FLOCK,
    TAKE_LOCK,
    end_orphans,
    find_daemons,
    is_daemon,
    mark_of,
    run_without_daemon,
    signal_daemons,
    wait_until_gone,
)
from deferrable_ops.triggers.supervisor.daemon.programs import stop_everything
from deferrable_ops.triggers.supervisor.host import (
    POLL_SECONDS,
    RUNNING,
    Daemon,
    ShuttingDown,
    StepFailed,
    SupervisorHost,
)

_LAUNCH: Final = TAKE_LOCK + 'exec "$@"\n'
_NOT_FOUND: Final = 127
_LAUNCHES: Final = 3  # of a supervisord that ends at once
_MAY_BE_SILENT: Final = 5.0  # seconds from its start until it answers
_TO_LEAVE: Final = 10.0  # seconds that a supervisord without programs needs to end

# Airflow gives them to its triggerer alone, to keep triggers from the metadata database: programs may use it.
_BLOCKING: Final = ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW__CORE__SQL_ALCHEMY_CONN")
_BLOCKED: Final = "airflow-db-not-allowed"

_CONTAINER_FILES: Final = (Path("/.dockerenv"), Path("/run/.containerenv"))
_CONTAINER: Final = re.compile(r"docker|kubepods|containerd|libpod|/lxc/")
_CONTAINER_VARIABLES: Final = ("KUBERNETES_SERVICE_HOST", "container")
_UNIT: Final = re.compile(r"/([^/\n]+\.service)(?:/|$)", re.MULTILINE)
_LETS_LIVE: Final = frozenset({"process", "none"})
_ASK_SECONDS: Final = 5.0


async def adopt_or_start(host: SupervisorHost) -> tuple[Daemon, bool]:
    """Return the supervisord that runs, and whether it was started now.

    However often and by however many it is called at once: there is one supervisord, because it holds a lock while it
    lives, and whoever cannot take that waits for its answer.

    :raises StepFailed: it cannot be started.
    :raises SupervisordRefused: one runs, and does not let us in.
    :raises SupervisordUnavailable: one runs, and does not answer.
    """
    launches, silent_since, is_ending = 0, None, False
    while True:
        try:
            daemon = await host.daemon()
        except ShuttingDown:
            if not is_ending:
                host.log.info("supervisord is shutting down; another is started when it has ended")
            is_ending = True
            await asyncio.sleep(POLL_SECONDS)
            continue
        if daemon is not None and daemon.state == RUNNING:
            return daemon, launches > 0
        found = await find_daemons(host) if daemon is None else []
        now = time.monotonic()
        silent_since = (silent_since or now) if found else None
        if silent_since is not None and now - silent_since > _MAY_BE_SILENT:
            raise SupervisordUnavailable(
                f"supervisord (pid {' '.join(map(str, found))}) runs on {host.machine.name}, and does not answer; the "
                "task force-kill ends it"
            )
        if daemon is None and not found:
            if launches == _LAUNCHES:
                raise StepFailed(
                    f"supervisord ended {launches} times as soon as it had started; read "
                    f"{host.cfg.supervisord.logfile} on {host.machine.name}"
                )
            launches += await _launch(host)
        # Otherwise it is about to answer, or about to end.
        await asyncio.sleep(POLL_SECONDS / 5)


async def stop(host: SupervisorHost) -> list[int]:
    """Stop the supervisord and its programs, and leave nothing of them; return the pids that the daemons had.

    Its programs get the time that they were promised. A supervisord that does not answer is told by a signal, and
    killed in the end.
    """
    found, seconds = await _told_to_stop(host)
    if not await wait_until_gone(host, found, seconds):
        host.log.warning("supervisord (pid %s) does not stop: it is killed", found)
        await host.check()
        await wait_until_gone(host, await signal_daemons(host, "KILL"), _TO_LEAVE)
    await end_orphans(host, sessions=tuple(found), grace=stop_seconds(host.cfg))
    await _remove_traces(host)
    return found


async def kill(host: SupervisorHost) -> list[int]:
    """Kill the supervisord, its programs, and what these have started; return the pids.

    It asks nothing of supervisord, which may not answer.
    """
    await host.check()
    killed = await signal_daemons(host, "KILL")
    await wait_until_gone(host, killed, _TO_LEAVE)
    left = await end_orphans(host, sessions=tuple(killed), grace=0.0)
    await _remove_traces(host)
    return sorted({*killed, *left})


async def lifetime_warning(host: SupervisorHost) -> str | None:
    """Return what would end the daemon together with the triggerer; None where nothing is known of that."""
    docker, podman = await host.machine.status(*_CONTAINER_FILES)
    groups = (await host.machine.read(Path("/proc/self/cgroup")) or b"").decode(errors="replace")
    init = (await host.machine.read(Path("/proc/1/cgroup")) or b"").decode(errors="replace")
    told = any(name in os.environ for name in _CONTAINER_VARIABLES)  # with cgroup v2 nothing else tells
    if told or docker is not None or podman is not None or _CONTAINER.search(groups + init):
        return "the triggerer runs in a container, with which everything in it ends"
    unit = _UNIT.search(groups)
    if unit is None:
        return None
    asked = ["systemctl", "show", "--property=KillMode", "--value", unit[1]]
    ended = await host.machine.run(asked, timeout=_ASK_SECONDS)
    mode = ended.output.strip() if ended.code == 0 else ""
    if mode in _LETS_LIVE:
        return None
    return (
        f"systemd ends all processes of the unit {unit[1]} when it stops (KillMode={mode or 'unknown'}); "
        "KillMode=process leaves them"
    )


async def _launch(host: SupervisorHost) -> bool:
    """Start supervisord, unless another has begun to; return whether this was it."""
    cfg = host.cfg
    if missing := await host.check_place():
        raise StepFailed(
            f"there is no {missing[0]} on {host.machine.name}; clear the task configure-supervisor, or make it "
            "where it is outside working_dir"
        )
    if await host.machine.read(cfg.config_path, 0, 1) is None:
        raise StepFailed(
            f"there is no {cfg.config_path} on {host.machine.name}; clear the task configure-supervisor"
        )
    await end_orphans(host, grace=stop_seconds(cfg))
    command = ["sh", "-c", _LAUNCH, "sh", str(host.lock), "env", mark_of(host), *_supervisord(host)]
    command += ["-c", str(cfg.config_path)]
    await host.check()
    try:
        ended = await host.machine.run(command, timeout=cfg.airflow.command_timeout)
    except MachineUnavailable as error:  # it quotes what was said until then
        raise MachineUnavailable(mask_secrets(str(error), cfg)) from None
    if ended.code == 0:
        return True
    if ended.code == LOCKED or await host.daemon() is not None:
        return False
    if ended.code == NO_FLOCK:
        raise StepFailed(
            f"flock is missing on {host.machine.name}; install util-linux there", retryable=False
        )
    if ended.code == _NOT_FOUND:
        fix = (
            "install supervisor there, or let command_prefix lead to it"
            if is_remote(cfg)
            else 'pip install "airflow-deferrable-ops[supervisor]"'
        )
        raise StepFailed(f"there is no supervisord on {host.machine.name}; {fix}", retryable=False)
    said = mask_secrets(ended.output.strip(), cfg)
    raise StepFailed(f"supervisord ended with {ended.code} on {host.machine.name}: {said}")


def _supervisord(host: SupervisorHost) -> list[str]:
    if is_remote(host.cfg):
        return ["supervisord"]
    blocking = [name for name in _BLOCKING if os.environ.get(name, "").startswith(_BLOCKED)]
    without = ["env", *(part for name in blocking for part in ("-u", name))] if blocking else []
    if importlib.util.find_spec("supervisor") is None:
        return [*without, "supervisord"]
    return [*without, sys.executable, "-P", "-m", "supervisor.supervisord"]


async def _told_to_stop(host: SupervisorHost) -> tuple[list[int], float]:
    """Tell the supervisord to end, its programs first; return the daemons' pids, and the seconds they may take."""
    try:
        daemon = await host.daemon()
        if daemon is not None:
            # It may name any process: what is in the session of one that is no supervisord of ours is not ended.
            found = [daemon.pid] if await is_daemon(host, daemon.pid) else []
            if daemon.state == RUNNING:
                # All at once: supervisord itself waits for each group before it stops the next.
                await stop_everything(host)
                await host.check()
                await host.rpc.call("supervisor.shutdown")
            return found, _TO_LEAVE + stop_seconds(host.cfg)
    except ShuttingDown:
        return await find_daemons(host), _TO_LEAVE + stop_seconds(host.cfg)
    except (StepFailed, SupervisordRefused, SupervisordUnavailable) as error:
        host.log.warning("%s; it is told by a signal", error)
    await host.check()
    return await signal_daemons(host, "TERM"), _TO_LEAVE


async def _remove_traces(host: SupervisorHost) -> None:
    """Remove the socket and the pid file that a killed supervisord leaves, unless there is a new one."""
    files = (str(host.cfg.socket_path), str(host.cfg.supervisord.pidfile))
    await run_without_daemon(host, KEEP_LOCK + 'rm -f -- "$@"\n', *files)
