"""Reads the DAG run of a trigger's task, and the states and the inbox rows of other tasks in this DAG run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability.facts import RunFacts
from deferrable_ops.inbox import Attempt, Wait
from deferrable_ops.inbox.database.schema import waits
from deferrable_ops.inbox.waits.ownership import has_newer_attempt
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.lifecycle.task_states import states_from_supervisor, states_of


def run_facts_of(trigger: Any) -> RunFacts:
    """Return the data of the DAG run to which a trigger's task belongs.

    :param trigger: the TaskTrigger of the task. If its argument ``run_facts`` is not None, the data is read from this
        argument, otherwise from the task instance that Airflow sets on the trigger.
    :raises InputError: if neither the trigger's arguments nor Airflow provide the data of the DAG run.
    """
    if trigger.run_facts is not None:
        return RunFacts.from_json(trigger.run_facts)
    # In a user's test, the trigger has no DAG run.
    if trigger.task_instance is None:
        attempt = trigger.current.attempt
        return RunFacts(
            attempt.dag_id, attempt.run_id, "manual", {"start_date": datetime.now(UTC).isoformat()}
        )
    if not trigger.task:
        raise InputError("The trigger has no DAG run details; clear the task")
    return RunFacts.of(trigger.task_instance.get_template_context())


async def newest_wait(trigger: TaskTrigger, task_id: str) -> Wait | None:
    """Return the wait of the newest attempt of another task in the same DAG run; None if that task has no wait."""
    attempt = trigger.current.attempt
    found = await trigger.inbox.waits.find(
        waits.c.dag_id == attempt.dag_id,
        waits.c.run_id == attempt.run_id,
        waits.c.task_id == task_id,
        waits.c.map_index == attempt.map_index,
        ~has_newer_attempt(),
    )
    return max(found, key=lambda wait: wait.created_at, default=None)


async def states_of_tasks(
    attempt: Attempt, task_ids: Sequence[str] | None
) -> Mapping[str, str | None] | None:
    """Return the states of tasks in an attempt's DAG run, by task id; None in ``dag.test()``.

    :param task_ids: the ids of the tasks. With ``task_ids=None``, the states of all tasks are returned, and the keys
        for a mapped task are ``task_0``, ``task_1`` and so on.
    """
    from airflow.sdk.execution_time import task_runner

    if not hasattr(getattr(task_runner, "SUPERVISOR_COMMS", None), "asend"):
        return None
    if task_ids is None:
        return (await states_from_supervisor(attempt.dag_id, [attempt.run_id], None)).get(attempt.run_id, {})
    attempts = {
        task_id: Attempt("", 0, attempt.dag_id, attempt.run_id, task_id, map_index=attempt.map_index)
        for task_id in task_ids
    }
    states = await states_of(attempts.values(), states_from_supervisor)
    return {task_id: states[one] for task_id, one in attempts.items()}
