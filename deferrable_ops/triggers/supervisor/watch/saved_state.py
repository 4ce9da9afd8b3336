"""The state that a task saves in the inbox while it watches programs. The next attempt of the task continues from this
state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import ColumnElement, select

from deferrable_ops.inbox import Inbox, Wait
from deferrable_ops.inbox.database.schema import waits
from deferrable_ops.supervisord.crash_loops import CrashHistory


@dataclass(frozen=True, slots=True)
class SavedState:
    """The saved state from which a task begins or continues to watch programs.

    :param histories: the crash history of each process, by the full name of the process. Without its crash history, a
        process that is paused because of a crash loop would be treated as ended.
    :param output: the position in each log file, by the path of the file. All output before this position was already
        copied.
    :param is_ours: whether the state was saved in this DAG run.
    :param is_retry: whether the state was saved by an earlier attempt in this DAG run, and the current attempt has not
        saved a state yet.
    """

    histories: dict[str, CrashHistory] = field(default_factory=dict)
    output: Mapping[str, Any] = field(default_factory=dict)
    is_ours: bool = False
    is_retry: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the state as a JSON object for the inbox."""
        histories = {name: history.to_json() for name, history in self.histories.items()}
        return {"programs": histories, "output": dict(self.output)}


async def load_saved_state(inbox: Inbox, wait: Wait) -> SavedState:
    """Return the state that this attempt of the task has saved. If this attempt has saved no state, return the state of
    the previous attempt.

    If the previous attempt belongs to another DAG run, return only the positions in the log files. The crash histories
    of another DAG run are not valid, because this DAG run has started all processes again.
    """
    if (own := _read(wait.progress)) is not None:
        return own
    for previous in await inbox.waits.find(_is_previous_attempt(wait)):
        if (found := _read(previous.progress)) is not None:
            same_run = previous.attempt.run_id == wait.attempt.run_id
            return replace(found, is_retry=True) if same_run else SavedState(output=found.output)
    return SavedState()


def _read(progress: Any) -> SavedState | None:
    match progress:
        case {"programs": dict(histories), "output": dict(output)}:
            return SavedState(
                {name: CrashHistory.from_json(data) for name, data in histories.items()}, output, True
            )
    return None


def _is_previous_attempt(wait: Wait) -> ColumnElement[bool]:
    own = wait.attempt
    before = waits.alias("before")
    newest = (
        select(before.c.id)
        .where(
            before.c.dag_id == own.dag_id,
            before.c.task_id == own.task_id,
            before.c.map_index == own.map_index,
            before.c.id != wait.id,
            before.c.progress.is_not(None),
        )
        .order_by(before.c.created_at.desc())
        .limit(1)
    )
    return waits.c.id == newest.scalar_subquery()
