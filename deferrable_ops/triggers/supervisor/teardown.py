"""Stops supervisord when a user has ended a task of its DAG run, if ``stop_on_exit`` is set."""

from __future__ import annotations

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

    This function is idempotent. This function does nothing in these cases:

    - the task was cleared, because the next attempt of the task uses the same supervisord;
    - the task timed out, because the DAG run continues with its own teardown tasks;
    - a user marked the task as a success;
    - another DAG run uses the supervisord now.

    :raises MachineUnavailable: if supervisord cannot be stopped from this triggerer's host now.
    """
    if wait.state is not WaitState.KILLED or not cfg.stop_on_exit or await _is_success(wait):
        return

    async def is_ours() -> bool:
        claimed = await inbox.daemons.find(daemon_name(cfg))
        own_run = (wait.attempt.dag_id, wait.attempt.run_id)
        return claimed is not None and (claimed.dag_id, claimed.run_id) == own_run

    async def check_claim() -> None:
        if not await is_ours():
            raise ClaimLost(f"another DAG run uses the supervisord {daemon_name(cfg)} now")

    if not await is_ours():
        return
    async with open_host(cfg, log, check_claim) as host:
        if (reason := await wrong_host_reason(inbox, cfg, await host.machine.identity())) is not None:
            raise MachineUnavailable(reason)
        runner = StepRunner(host, inbox, wait)
        await runner.run("stop-supervisor")
        if cfg.cleanup:
            await runner.run("unconfigure-supervisor")


async def _is_success(wait: Wait) -> bool:
    task_id = wait.attempt.task_id
    states = await states_of_tasks(wait.attempt, [task_id])
    return states is not None and states[task_id] == "success"
