"""What a trigger learns of its own DAG run, and of the run's other tasks."""

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
from deferrable_ops.triggers.lifecycle.task_states import ask_supervisor, states_of


def run_facts_of(trigger: Any) -> RunFacts:
    """Return what there is to know of a trigger's DAG run.

    :param trigger: a TaskTrigger with an argument ``run_facts``.
    :raises InputError: nobody told the trigger of it.
    """
    if trigger.run_facts is not None:
        return RunFacts.from_json(trigger.run_facts)
    if trigger.task_instance is None:  # a test of a user's, in which there is no DAG run
        attempt = trigger.current.attempt
        return RunFacts(
            attempt.dag_id, attempt.run_id, "manual", {"start_date": datetime.now(UTC).isoformat()}
        )
    if not trigger.task:
        raise InputError("nobody told the trigger of its DAG run; clear the task")
    return RunFacts.of(trigger.task_instance.get_template_context())


async def newest_wait(trigger: TaskTrigger, task_id: str) -> Wait | None:
    """Return what the inbox has of the newest attempt of another task of a trigger's DAG run."""
    attempt = trigger.current.attempt
    found = await trigger.inbox.waits.find(
        waits.c.dag_id == attempt.dag_id,
        waits.c.run_id == attempt.run_id,
        waits.c.task_id == task_id,
        waits.c.map_index == attempt.map_index,
        ~has_newer_attempt(),
    )
    return max(found, key=lambda wait: wait.created_at, default=None)


async def states_of_tasks(own: Attempt, task_ids: Sequence[str] | None) -> Mapping[str, str | None] | None:
    """Return the states of tasks of an attempt's DAG run by their ids; None where nobody tells, in ``dag.test()``.

    :param task_ids: which; None: all of them, those that are mapped as ``task_0`` and so on.
    """
    from airflow.sdk.execution_time import task_runner

    if not hasattr(getattr(task_runner, "SUPERVISOR_COMMS", None), "asend"):
        return None
    if task_ids is None:
        return (await ask_supervisor(own.dag_id, [own.run_id], None)).get(own.run_id, {})
    asked = {
        task_id: Attempt("", 0, own.dag_id, own.run_id, task_id, map_index=own.map_index)
        for task_id in task_ids
    }
    states = await states_of(asked.values(), ask_supervisor)
    return {task_id: states[attempt] for task_id, attempt in asked.items()}
