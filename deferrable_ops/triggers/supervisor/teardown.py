"""What ends with a task that a user has killed: its run's programs and supervisord, where ``stop_on_exit`` says so."""

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
    """Stop what the DAG run of a killed task uses, and with ``cleanup`` remove its files. May be called again.

    Nothing is stopped for a task that was cleared, since its next attempt goes on with the same supervisord; that ran
    out of time, since the DAG goes on to its own teardown; that a user marked as a success; or whose supervisord
    another DAG run uses by now.

    :raises MachineUnavailable: it cannot be done from here now.
    """
    if wait.state is not WaitState.KILLED or not cfg.stop_on_exit or await _is_success(wait):
        return

    async def is_used() -> bool:
        claimed = await inbox.daemons.find(daemon_name(cfg))
        mine = (wait.attempt.dag_id, wait.attempt.run_id)
        return claimed is not None and (claimed.dag_id, claimed.run_id) == mine

    async def check() -> None:
        if not await is_used():
            raise ClaimLost(f"another DAG run uses the supervisord {daemon_name(cfg)} by now")

    if not await is_used():
        return
    async with open_host(cfg, log, check) as host:
        if (elsewhere := await wrong_host_reason(inbox, cfg, await host.machine.identity())) is not None:
            raise MachineUnavailable(elsewhere)
        steps = StepRunner(host, inbox, wait)
        await steps.run("stop-supervisor")
        if cfg.cleanup:
            await steps.run("unconfigure-supervisor")


async def _is_success(wait: Wait) -> bool:
    task_id = wait.attempt.task_id
    states = await states_of_tasks(wait.attempt, [task_id])
    return states is not None and states[task_id] == "success"
