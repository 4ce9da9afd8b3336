"""Finds tasks that have an outcome in the inbox, but that Airflow has not ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from sqlalchemy import ColumnElement

from deferrable_ops.inbox import Attempt, Inbox, Wait
from deferrable_ops.triggers.lifecycle.task_states import UNDER_WAY

log = logging.getLogger(__name__)

ANSWERED_FOR: Final = 60.0
"""A task should have ended in Airflow this many seconds after the inbox has received its outcome."""

METRIC: Final = "deferrable_ops.tasks_answered_not_ended"
"""The gauge with the number of these tasks, in the metrics of the API server."""

_EVERY = 60.0

AttemptsSource = Callable[[], Awaitable[list[str]]]
"""A function that returns the wait ids of all attempts of tasks that are under way in Airflow."""


async def find_unended(
    inbox: Inbox,
    source: AttemptsSource,
    answered_for: float = ANSWERED_FOR,
    *,
    conditions: Sequence[ColumnElement[bool]] = (),
) -> list[Wait]:
    """Return the waits that were settled more than `answered_for` seconds ago although Airflow has not ended the task,
    the first settled wait first.

    The triggerers of such tasks are down, overloaded or stuck.

    :param conditions: SQLAlchemy conditions on the table of waits; only waits that meet all these conditions are
        returned.
    """
    found = await inbox.waits.settled_before(await source(), answered_for, *conditions)
    return sorted(found, key=lambda wait: wait.settled_at or 0.0)


async def report_unended(inbox: Inbox, source: AttemptsSource, every: float = _EVERY) -> None:
    """Log once a minute how many tasks have an outcome in the inbox, but have not ended in Airflow, and set the gauge
    :data:`METRIC` to this number. Only one process at a time logs this number. The function runs until it is cancelled.

    Nothing is reported while the inbox belongs to another deployment of Airflow, because `source` does not return the
    attempts of another deployment.
    """
    from airflow.observability import stats

    while True:
        is_turn = await inbox.owner.problem() is None and await inbox.database.try_lock("unended", every)
        found = await find_unended(inbox, source) if is_turn else []
        if is_turn:
            stats.gauge(METRIC, len(found))
        if found:
            oldest = found[0]
            log.warning(
                "%d tasks have had an outcome for more than %d s, but have not ended in Airflow. The oldest is %s.%s "
                "of run %s (wait %s). Check that the triggerers run and are not overloaded. To list the tasks, run: "
                "deferrable-ops waits --answered",
                len(found),
                ANSWERED_FOR,
                oldest.attempt.dag_id,
                oldest.attempt.task_id,
                oldest.attempt.run_id,
                oldest.id,
            )
        await asyncio.sleep(every)


async def attempts_from_database() -> list[str]:
    """Return the wait ids of all task attempts that have not ended, read from Airflow's metadata database.

    Only the API server and the command ``deferrable-ops`` may call this function, because triggers must not access the
    metadata database.
    """
    return await asyncio.to_thread(_read_metadata_database)


def _read_metadata_database() -> list[str]:
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    query = select(TaskInstance.id, TaskInstance.try_number).where(TaskInstance.state.in_(UNDER_WAY))
    with create_session() as session:
        return [Attempt(str(ti_id), number, "", "", "").wait_id for ti_id, number in session.execute(query)]
