"""Starts, stops and kills one supervisord, or uses one that is already running."""

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
    environment_marker,
    find_daemons,
    is_daemon,
    run_without_daemon,
    signal_daemons,
    wait_until_gone,
)
from deferrable_ops.triggers.supervisor.daemon.programs import stop_everything
from deferrable_ops.triggers.supervisor.host import (
    RUNNING,
    RunningDaemon,
    ShuttingDown,
    StepFailed,
    SupervisorHost,
)

_START_SCRIPT: Final = TAKE_LOCK + 'exec "$@"\n'
_COMMAND_NOT_FOUND: Final = 127

# The number of start attempts if supervisord ends immediately after each attempt.
_START_ATTEMPTS: Final = 3

# In the triggerer, Airflow sets these variables to a placeholder, so that triggers cannot use the metadata database.
# But programs may use the database, so the variables with the placeholder are removed from the programs' environment.
_DATABASE_VARIABLES: Final = ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW__CORE__SQL_ALCHEMY_CONN")
_BLOCKED_VALUE: Final = "airflow-db-not-allowed"

_CONTAINER_FILES: Final = (Path("/.dockerenv"), Path("/run/.containerenv"))
_CONTAINER_CGROUP: Final = re.compile(r"docker|kubepods|containerd|libpod|/lxc/")
_CONTAINER_VARIABLES: Final = ("KUBERNETES_SERVICE_HOST", "container")
_UNIT: Final = re.compile(r"/([^/\n]+\.service)(?:/|$)", re.MULTILINE)
_HARMLESS_KILL_MODES: Final = frozenset({"process", "none"})
_SYSTEMCTL_SECONDS: Final = 5.0


async def adopt_or_start(host: SupervisorHost) -> tuple[RunningDaemon, bool]:
    """Return the running supervisord, and whether this call started it. If no supervisord is running, start one.

    If this function is called several times, even at the same time, only one supervisord is started. A running
    supervisord keeps the lock file locked. A call that cannot lock the lock file waits until the running supervisord
    responds.

    :raises StepFailed: if supervisord cannot be started.
    :raises SupervisordRefused: if supervisord is running, but refuses the user name and password.
    :raises SupervisordUnavailable: if supervisord is running, but does not respond.
    """
    launches, silent_since, is_ending = 0, None, False
    while True:
        try:
            daemon = await host.daemon()
        except ShuttingDown:
            if not is_ending:
                host.log.info(
                    "supervisord is shutting down; after it has ended, this task starts a new supervisord"
                )
            is_ending = True
            await asyncio.sleep(host.timings.poll_interval)
            continue
        if daemon is not None and daemon.state == RUNNING:
            return daemon, launches > 0
        found = await find_daemons(host) if daemon is None else []
        now = time.monotonic()
        silent_since = (silent_since or now) if found else None
        if silent_since is not None and now - silent_since > host.timings.answer_timeout:
            if not await host.has_socket():
                host.log.warning(
                    "supervisord (pid %s) runs, but its socket %s was removed; stopping it and starting another",
                    " ".join(map(str, found)),
                    host.cfg.socket_path,
                )
                await stop(host)
                silent_since = None
                continue
            raise SupervisordUnavailable(
                f"supervisord (pid {' '.join(map(str, found))}) runs on {host.machine.name} but does not answer; clear "
                "the DAG's task 'force-kill', which kills supervisord"
            )
        if daemon is None and not found:
            if launches == _START_ATTEMPTS:
                raise StepFailed(
                    f"supervisord was started {launches} times on {host.machine.name} and ended at once each time; "
                    f"read its log {host.cfg.supervisord.logfile} there"
                )
            launches += await _launch(host)
        # The supervisord that was found or started is about to answer, or about to end.
        await asyncio.sleep(host.timings.search_interval)


async def stop(host: SupervisorHost) -> list[int]:
    """Stop supervisord and all processes of its programs. Return the pids of the stopped supervisords.

    Each program may take up to its ``stopwaitsecs`` to stop. If supervisord does not respond, it receives SIGTERM, and
    later SIGKILL. If processes of the programs are still running after supervisord has ended, these processes are also
    ended.
    """
    found, seconds = await _request_stop(host)
    if not await wait_until_gone(host, found, seconds):
        host.log.warning("supervisord (pid %s) did not stop within %g s; killing it", found, seconds)
        await host.check_claim()
        await wait_until_gone(host, await signal_daemons(host, "KILL"), host.timings.shutdown_timeout)
    await end_orphans(host, sessions=tuple(found), grace=stop_seconds(host.cfg))
    await _remove_runtime_files(host)
    return found


async def kill(host: SupervisorHost) -> list[int]:
    """Kill supervisord, its programs and their child processes. Return the pids of all killed processes.

    This function does not send a request to supervisord, because a supervisord that hangs would not respond.
    """
    await host.check_claim()
    killed = await signal_daemons(host, "KILL")
    await wait_until_gone(host, killed, host.timings.shutdown_timeout)
    left = await end_orphans(host, sessions=tuple(killed), grace=0.0)
    await _remove_runtime_files(host)
    return sorted({*killed, *left})


async def lifetime_warning(host: SupervisorHost) -> str | None:
    """Return the reason why supervisord would end when the triggerer ends; None if no such reason was found."""
    docker, podman = await host.machine.status(*_CONTAINER_FILES)
    groups = (await host.machine.read(Path("/proc/self/cgroup")) or b"").decode(errors="replace")
    init = (await host.machine.read(Path("/proc/1/cgroup")) or b"").decode(errors="replace")
    # With cgroup v2, environment variables may be the only evidence of a container.
    has_variable = any(name in os.environ for name in _CONTAINER_VARIABLES)
    if has_variable or docker is not None or podman is not None or _CONTAINER_CGROUP.search(groups + init):
        return "the triggerer runs in a container, and all processes in the container end with it"
    unit = _UNIT.search(groups)
    if unit is None:
        return None
    command = ["systemctl", "show", "--property=KillMode", "--value", unit[1]]
    result = await host.machine.run(command, timeout=_SYSTEMCTL_SECONDS)
    mode = result.output.strip() if result.code == 0 else ""
    if mode in _HARMLESS_KILL_MODES:
        return None
    return (
        f"systemd ends all processes of the unit {unit[1]} when the unit stops (KillMode={mode or 'unknown'}); set "
        "KillMode=process in the unit"
    )


async def _launch(host: SupervisorHost) -> bool:
    """Start supervisord. Return False if another process had already started a supervisord."""
    cfg = host.cfg
    if missing := await host.missing_directories():
        raise StepFailed(
            f"the directory {missing[0]} does not exist on {host.machine.name}; clear the task 'configure-supervisor', "
            "or create the directory yourself if it is outside working_dir"
        )
    if await host.machine.read(cfg.config_path, 0, 1) is None:
        raise StepFailed(
            f"the file {cfg.config_path} does not exist on {host.machine.name}; clear the task 'configure-supervisor'"
        )
    await end_orphans(host, grace=stop_seconds(cfg))
    command = ["sh", "-c", _START_SCRIPT, "sh", str(host.lock), "env", environment_marker(host)]
    command += [*_supervisord(host), "-c", str(cfg.config_path)]
    await host.check_claim()
    try:
        result = await host.machine.run(command, timeout=cfg.airflow.command_timeout)
    except MachineUnavailable as error:
        # The message quotes the output of supervisord, which may contain secrets.
        raise MachineUnavailable(mask_secrets(str(error), cfg)) from None
    if result.code == 0:
        return True
    if result.code == LOCKED or await host.daemon() is not None:
        return False
    if result.code == NO_FLOCK:
        raise StepFailed(
            f"flock is missing on {host.machine.name}; install util-linux there", retryable=False
        )
    if result.code == _COMMAND_NOT_FOUND:
        fix = (
            "install supervisor there, or add its directory to PATH in command_prefix"
            if is_remote(cfg)
            else 'run pip install "airflow-deferrable-ops[supervisor]" there'
        )
        raise StepFailed(f"supervisord is not installed on {host.machine.name}; {fix}", retryable=False)
    output = mask_secrets(result.output.strip(), cfg)
    raise StepFailed(f"supervisord exited with code {result.code} on {host.machine.name}: {output}")


def _supervisord(host: SupervisorHost) -> list[str]:
    if is_remote(host.cfg):
        return ["supervisord"]
    blocked = [name for name in _DATABASE_VARIABLES if os.environ.get(name, "").startswith(_BLOCKED_VALUE)]
    unset = ["env", *(part for name in blocked for part in ("-u", name))] if blocked else []
    if importlib.util.find_spec("supervisor") is None:
        return [*unset, "supervisord"]
    return [*unset, sys.executable, "-P", "-m", "supervisor.supervisord"]


async def _request_stop(host: SupervisorHost) -> tuple[list[int], float]:
    """Stop the programs, then request supervisord to end.

    Return the pids of the supervisords that will end, and the longest time in seconds until they have ended.
    """
    try:
        daemon = await host.daemon()
        if daemon is not None:
            # The answering process may report a wrong pid. Use the pid only if it belongs to our supervisord.
            found = [daemon.pid] if await is_daemon(host, daemon.pid) else []
            if daemon.state == RUNNING:
                # supervisor.shutdown would stop one group after the other. stop_everything stops them at the same time.
                await stop_everything(host)
                await host.check_claim()
                await host.rpc.call("supervisor.shutdown")
            return found, host.timings.shutdown_timeout + stop_seconds(host.cfg)
    except ShuttingDown:
        return await find_daemons(host), host.timings.shutdown_timeout + stop_seconds(host.cfg)
    except (StepFailed, SupervisordRefused, SupervisordUnavailable) as error:
        host.log.warning("%s; sending SIGTERM to supervisord", error)
    # supervisord stops its programs before it ends, unless it hangs.
    seconds = 0.0 if await host.has_socket() else stop_seconds(host.cfg)
    await host.check_claim()
    return await signal_daemons(host, "TERM"), host.timings.shutdown_timeout + seconds


async def _remove_runtime_files(host: SupervisorHost) -> None:
    """Remove the socket and the pid file that a killed supervisord left, unless a new supervisord is running."""
    files = (str(host.cfg.socket_path), str(host.cfg.supervisord.pidfile))
    await run_without_daemon(host, KEEP_LOCK + 'rm -f -- "$@"\n', *files)
