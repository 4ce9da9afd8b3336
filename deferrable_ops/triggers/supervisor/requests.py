"""Carries out requests to stop a supervisord, or to restart one of its programs."""

from __future__ import annotations

import asyncio
import logging

from deferrable_ops.exceptions import MachineUnavailable
from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.daemons import DaemonLocation
from deferrable_ops.inbox.requests import ClaimedRequest
from deferrable_ops.inbox.waits.launches import ClaimLost
from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.triggers.lifecycle.requests import RequestFailed
from deferrable_ops.triggers.supervisor.configuration import load_configuration, step_timeout, stop_seconds
from deferrable_ops.triggers.supervisor.daemon.programs import NOT_STARTED, restart_program
from deferrable_ops.triggers.supervisor.host import StepFailed, open_host
from deferrable_ops.triggers.supervisor.steps import wrong_host_reason
from deferrable_ops.triggers.supervisor.teardown import stop_supervisord

log = logging.getLogger(__name__)


async def stop(inbox: Inbox, claimed: ClaimedRequest) -> str:
    """Stop a supervisord and its programs, and remove its files if ``cleanup`` is set. Return a text that describes
    what was done.

    Each stop request belongs to one DAG run. If another DAG run uses the supervisord now, nothing is stopped.

    :raises RequestFailed: if the inbox does not contain the supervisord's configuration.
    :raises MachineUnavailable: if supervisord cannot be stopped from this host now.
    """
    request = claimed.request
    daemon = await inbox.daemons.find(request.target)
    if daemon is None:
        return "the supervisord was stopped before, or its record was deleted"
    dag_id, run_id = request.arguments["dag_id"], request.arguments["run_id"]
    if not daemon.is_used_by(dag_id, run_id):
        return _in_use(daemon)
    cfg = _configuration(daemon)
    try:
        async with asyncio.timeout(step_timeout(cfg, "stop-supervisor")):
            stopped = await stop_supervisord(inbox, cfg, log, dag_id, run_id, claimed.check)
    except ClaimLost:
        now = await inbox.daemons.find(request.target)
        return "another process has stopped the supervisord" if now is None else _in_use(now)
    pids = ", ".join(map(str, stopped))
    return f"stopped supervisord (pid {pids}) on {daemon.host}" if stopped else "supervisord was not running"


async def restart(inbox: Inbox, claimed: ClaimedRequest) -> str:
    """Restart one program of a supervisord, or start the program if it does not run. Return a text with the states of
    the program's processes.

    :raises RequestFailed: if supervisord does not run, has no such program, or cannot start the program.
    :raises MachineUnavailable: if supervisord cannot be reached from this host now.
    """
    request = claimed.request
    daemon = await inbox.daemons.find(request.target)
    if daemon is None:
        raise RequestFailed("the supervisord was stopped, or its record was deleted")
    cfg, program = _configuration(daemon), request.arguments["program"]
    # supervisord answers when the old process has stopped.
    call_timeout = stop_seconds(cfg) + cfg.airflow.command_timeout
    async with (
        asyncio.timeout(step_timeout(cfg, "restart-programs")),
        open_host(cfg, log, claimed.check, call_timeout=call_timeout) as host,
    ):
        if (reason := await wrong_host_reason(inbox, cfg, await host.machine.identity())) is not None:
            raise MachineUnavailable(reason)
        if await host.daemon() is None:
            raise RequestFailed(
                f"supervisord does not run on {host.machine.name}; the next DAG run starts it"
            )
        try:
            found = await restart_program(host, program)
        except StepFailed as failed:
            raise RequestFailed(str(failed)) from None
    states = ", ".join(f"{one.full_name} is {one.state.name} (pid {one.pid})" for one in found)
    if any(one.state in NOT_STARTED for one in found):
        raise RequestFailed(f"could not start the program: {states}; read its log")
    return f"restarted: {states}"


def _configuration(daemon: DaemonLocation) -> SupervisorAirflowConfiguration:
    text = daemon.details.get("configuration")
    if text is None:
        raise RequestFailed(
            "an older release recorded this supervisord without its configuration; clear the DAG's task "
            "'force-kill', or wait until the next DAG run has started"
        )
    return load_configuration(text)


def _in_use(daemon: DaemonLocation) -> str:
    return f"nothing was stopped, because the DAG run {daemon.run_id} of {daemon.dag_id} uses this supervisord now"
