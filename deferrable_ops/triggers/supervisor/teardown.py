"""Stops a supervisord outside of its DAG's teardown steps: for a task that a user has ended, and for requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from deferrable_ops.exceptions import MachineUnavailable
from deferrable_ops.inbox import Inbox, Wait, WaitState
from deferrable_ops.inbox.waits.launches import ClaimLost
from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.triggers.dag_run import states_of_tasks
from deferrable_ops.triggers.supervisor.configuration import daemon_name
from deferrable_ops.triggers.supervisor.host import open_host
from deferrable_ops.triggers.supervisor.steps import StepRunner, wrong_host_reason


async def tear_down_if_killed(
    inbox: Inbox, wait: Wait, cfg: SupervisorAirflowConfiguration, log: Any
) -> None:
    """If a user ended the task, stop supervisord and its programs. If the field ``cleanup`` is set, also remove
    supervisord's files.

    This function is idempotent. It does nothing in these cases:

    - the task was cleared, because the next attempt of the task uses the same supervisord;
    - the task timed out, because the DAG run continues with its own teardown tasks;
    - a user marked the task as a success;
    - another DAG run uses the supervisord now.

    :raises MachineUnavailable: if supervisord cannot be stopped from this triggerer's host now.
    """
    if wait.state is not WaitState.KILLED or not cfg.stop_on_exit or await _is_success(wait):
        return

    if await is_used_by(inbox, cfg, wait.attempt.dag_id, wait.attempt.run_id):
        await stop_supervisord(inbox, cfg, log, wait.attempt.dag_id, wait.attempt.run_id)


async def stop_supervisord(
    inbox: Inbox,
    cfg: SupervisorAirflowConfiguration,
    log: Any,
    dag_id: str,
    run_id: str,
    check_claim: Callable[[], Awaitable[object]] | None = None,
) -> list[int]:
    """Stop supervisord and its programs. If the field ``cleanup`` is set, also remove supervisord's files.

    Return the pids of the stopped supervisords. This function is idempotent.

    :param dag_id: the DAG id of the DAG run that uses the supervisord.
    :param run_id: the run id of the DAG run that uses the supervisord.
    :param check_claim: a function that is awaited before each change on the host; see :class:`SupervisorHost`.
    :raises ClaimLost: if another DAG run uses the supervisord now.
    :raises MachineUnavailable: if supervisord cannot be stopped from this triggerer's host now.
    """

    async def check() -> None:
        if check_claim is not None:
            await check_claim()
        if not await is_used_by(inbox, cfg, dag_id, run_id):
            raise ClaimLost(f"another DAG run uses the supervisord {daemon_name(cfg)} now")

    async with open_host(cfg, log, check) as host:
        if (reason := await wrong_host_reason(inbox, cfg, await host.machine.identity())) is not None:
            raise MachineUnavailable(reason)
        runner = StepRunner(host, inbox, None)
        result = await runner.run("stop-supervisor")
        if cfg.cleanup:
            await runner.run("unconfigure-supervisor")
    stopped: list[int] = result["stopped"]
    return stopped


async def is_used_by(inbox: Inbox, cfg: SupervisorAirflowConfiguration, dag_id: str, run_id: str) -> bool:
    """Return whether this DAG run is the last that configured or started the supervisord."""
    claimed = await inbox.daemons.find(daemon_name(cfg))
    return claimed is not None and claimed.is_used_by(dag_id, run_id)


async def _is_success(wait: Wait) -> bool:
    task_id = wait.attempt.task_id
    states = await states_of_tasks(wait.attempt, [task_id])
    return states is not None and states[task_id] == "success"
