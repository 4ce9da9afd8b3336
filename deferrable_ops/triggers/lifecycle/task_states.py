"""Reads the states of task instances from Airflow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from deferrable_ops.inbox import Attempt
from deferrable_ops.supervisor_calls import Rank, send

StatesSource = Callable[[str, list[str], list[str]], Awaitable[dict[str, dict[str, Any]]]]
"""A function of a DAG id, run ids and task ids. It returns the states by run id, then by ``task_id[_mapindex]``."""

DEFERRED: Final = "deferred"
UNDER_WAY: Final = frozenset({DEFERRED, "scheduled", "queued", "running", "restarting"})
"""The states of a task whose attempt may still wait: deferred, or about to be deferred or resumed."""

_SUPERVISOR_TIMEOUT = 30.0


async def states_from_supervisor(
    dag_id: str, run_ids: list[str], task_ids: list[str] | None
) -> dict[str, dict[str, Any]]:
    """Request the states of task instances from the triggerer's supervisor process, and return these states.

    :param task_ids: the ids of the tasks. If `task_ids` is None, the states of all tasks are requested.
    :raises TimeoutError: if the supervisor process did not reply, for example because its Airflow release does not
        support this type of message.
    """
    from airflow.sdk.execution_time.comms import GetTaskStates

    request = GetTaskStates(dag_id=dag_id, run_ids=run_ids, task_ids=task_ids)
    reply = await send(request, rank=Rank.READ, timeout=_SUPERVISOR_TIMEOUT)
    return dict(reply.task_states)


async def states_of(attempts: Iterable[Attempt], source: StatesSource) -> dict[Attempt, str | None]:
    """Return the state of the task instance of each attempt, or None for a task instance that no longer exists."""
    by_dag: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        by_dag[attempt.dag_id].append(attempt)
    found: dict[Attempt, str | None] = {}
    for dag_id, of_dag in by_dag.items():
        run_ids = sorted({attempt.run_id for attempt in of_dag})
        states = await source(dag_id, run_ids, sorted({attempt.task_id for attempt in of_dag}))
        for attempt in of_dag:
            name = _instance_name(attempt.task_id, attempt.map_index)
            found[attempt] = states.get(attempt.run_id, {}).get(name)
    return found


def _instance_name(task_id: str, map_index: int) -> str:
    return task_id if map_index < 0 else f"{task_id}_{map_index}"
