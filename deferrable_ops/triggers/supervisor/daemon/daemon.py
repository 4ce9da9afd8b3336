"""One supervisord for a configuration: adopted where it runs, started where it does not, stopped, and killed."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import time
from typing import Final

from deferrable_ops.exceptions import MachineUnavailable, SupervisordRefused, SupervisordUnavailable
from deferrable_ops.triggers.supervisor.configuration import is_remote, stop_seconds, without_secrets
from deferrable_ops.triggers.supervisor.daemon.processes import (
    KEEP_LOCK,
    LOCKED,
    NO_FLOCK,
    TAKE_LOCK,
    all_gone,
    daemons,
    end_left_over,
    mark_of,
    runs_daemon,
    signal_daemons,
    without_daemon,
)
from deferrable_ops.triggers.supervisor.daemon.programs import stop_everything
from deferrable_ops.triggers.supervisor.host import POLL, RUNNING, Daemon, ShuttingDown, Site, StepFailed

_LAUNCH: Final = TAKE_LOCK + 'exec "$@"\n'
_NOT_FOUND: Final = 127
_LAUNCHES: Final = 3  # of a supervisord that ends at once
_MAY_BE_SILENT: Final = 5.0  # seconds from its start until it answers
_TO_LEAVE: Final = 10.0  # seconds that a supervisord without programs needs to end

# Airflow gives them to its triggerer alone, to keep triggers from the metadata database: programs may use it.
_BLOCKING: Final = ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW__CORE__SQL_ALCHEMY_CONN")
_BLOCKED: Final = "airflow-db-not-allowed"


async def adopt_or_start(site: Site) -> tuple[Daemon, bool]:
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
            daemon = await site.daemon()
        except ShuttingDown:
            if not is_ending:
                site.log.info("supervisord is shutting down; another is started when it has ended")
            is_ending = True
            await asyncio.sleep(POLL)
            continue
        if daemon is not None and daemon.state == RUNNING:
            return daemon, launches > 0
        found = await daemons(site) if daemon is None else []
        now = time.monotonic()
        silent_since = (silent_since or now) if found else None
        if silent_since is not None and now - silent_since > _MAY_BE_SILENT:
            raise SupervisordUnavailable(
                f"supervisord (pid {' '.join(map(str, found))}) runs on {site.machine.name}, and does not answer; the "
                "task force-kill ends it"
            )
        if daemon is None and not found:
            if launches == _LAUNCHES:
                raise StepFailed(
                    f"supervisord ended {launches} times as soon as it had started; read "
                    f"{site.cfg.supervisord.logfile} on {site.machine.name}"
                )
            launches += await _launch(site)
        # Otherwise it is about to answer, or about to end.
        await asyncio.sleep(POLL / 5)


async def stop(site: Site) -> list[int]:
    """Stop the supervisord and its programs, and leave nothing of them; return the pids that the daemons had.

    Its programs get the time that they were promised. A supervisord that does not answer is told by a signal, and
    killed in the end.
    """
    found, seconds = await _told_to_stop(site)
    if not await all_gone(site, found, seconds):
        site.log.warning("supervisord (pid %s) does not stop: it is killed", found)
        await site.check()
        await all_gone(site, await signal_daemons(site, "KILL"), _TO_LEAVE)
    await end_left_over(site, sessions=tuple(found), grace=stop_seconds(site.cfg))
    await _remove_traces(site)
    return found


async def kill(site: Site) -> list[int]:
    """Kill the supervisord, its programs, and what these have started; return the pids.

    It asks nothing of supervisord, which may not answer.
    """
    await site.check()
    killed = await signal_daemons(site, "KILL")
    await all_gone(site, killed, _TO_LEAVE)
    left = await end_left_over(site, sessions=tuple(killed), grace=0.0)
    await _remove_traces(site)
    return sorted({*killed, *left})


async def _launch(site: Site) -> bool:
    """Start supervisord, unless another has begun to; return whether this was it."""
    cfg = site.cfg
    if missing := await site.check_place():
        raise StepFailed(
            f"there is no {missing[0]} on {site.machine.name}; clear the task configure-supervisor, or make it "
            "where it is outside working_dir"
        )
    if await site.machine.read(cfg.config_path, 0, 1) is None:
        raise StepFailed(
            f"there is no {cfg.config_path} on {site.machine.name}; clear the task configure-supervisor"
        )
    await end_left_over(site, grace=stop_seconds(cfg))
    command = ["sh", "-c", _LAUNCH, "sh", str(site.lock), "env", mark_of(site), *_supervisord(site)]
    command += ["-c", str(cfg.config_path)]
    await site.check()
    try:
        ended = await site.machine.run(command, timeout=cfg.airflow.command_timeout)
    except MachineUnavailable as error:  # it quotes what was said until then
        raise MachineUnavailable(without_secrets(str(error), cfg)) from None
    if ended.code == 0:
        return True
    if ended.code == LOCKED or await site.daemon() is not None:
        return False
    if ended.code == NO_FLOCK:
        raise StepFailed(
            f"flock is missing on {site.machine.name}; install util-linux there", retryable=False
        )
    if ended.code == _NOT_FOUND:
        fix = (
            "install supervisor there, or let command_prefix lead to it"
            if is_remote(cfg)
            else 'pip install "airflow-deferrable-ops[supervisor]"'
        )
        raise StepFailed(f"there is no supervisord on {site.machine.name}; {fix}", retryable=False)
    said = without_secrets(ended.output.strip(), cfg)
    raise StepFailed(f"supervisord ended with {ended.code} on {site.machine.name}: {said}")


def _supervisord(site: Site) -> list[str]:
    if is_remote(site.cfg):
        return ["supervisord"]
    blocking = [name for name in _BLOCKING if os.environ.get(name, "").startswith(_BLOCKED)]
    without = ["env", *(part for name in blocking for part in ("-u", name))] if blocking else []
    if importlib.util.find_spec("supervisor") is None:
        return [*without, "supervisord"]
    return [*without, sys.executable, "-P", "-m", "supervisor.supervisord"]


async def _told_to_stop(site: Site) -> tuple[list[int], float]:
    """Tell the supervisord to end, its programs first; return the daemons' pids, and the seconds they may take."""
    try:
        daemon = await site.daemon()
        if daemon is not None:
            # It may name any process: what is in the session of one that is no supervisord of ours is not ended.
            found = [daemon.pid] if await runs_daemon(site, daemon.pid) else []
            if daemon.state == RUNNING:
                # All at once: supervisord itself waits for each group before it stops the next.
                await stop_everything(site)
                await site.check()
                await site.rpc.call("supervisor.shutdown")
            return found, _TO_LEAVE + stop_seconds(site.cfg)
    except ShuttingDown:
        return await daemons(site), _TO_LEAVE + stop_seconds(site.cfg)
    except (StepFailed, SupervisordRefused, SupervisordUnavailable) as error:
        site.log.warning("%s; it is told by a signal", error)
    await site.check()
    return await signal_daemons(site, "TERM"), _TO_LEAVE


async def _remove_traces(site: Site) -> None:
    """Remove the socket and the pid file that a killed supervisord leaves, unless there is a new one."""
    files = (str(site.cfg.socket_path), str(site.cfg.supervisord.pidfile))
    await without_daemon(site, KEEP_LOCK + 'rm -f -- "$@"\n', *files)
