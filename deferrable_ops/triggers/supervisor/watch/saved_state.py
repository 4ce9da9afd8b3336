"""The state that a task which watches programs saves in the inbox, so that its next attempt can resume from it."""

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
    """The state with which a task starts to watch programs, or resumes watching them.

    :param histories: the crash history of each process, by the process's full name. Without its crash history, a
        paused process would be treated as ended.
    :param output: for each log file, the position before which all lines were already copied.
    :param is_ours: whether an attempt in this DAG run saved the state.
    :param is_retry: whether an earlier attempt in this DAG run saved the state, and the current attempt has not yet
        saved its own state.
    """

    histories: dict[str, CrashHistory] = field(default_factory=dict)
    output: Mapping[str, Any] = field(default_factory=dict)
    is_ours: bool = False
    is_retry: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the state as a JSON object."""
        histories = {name: history.to_json() for name, history in self.histories.items()}
        return {"programs": histories, "output": dict(self.output)}


async def load_saved_state(inbox: Inbox, wait: Wait) -> SavedState:
    """Return the state that this attempt of the task has saved, or else the state that the previous attempt has saved.

    If the previous attempt belongs to another DAG run, return only the positions in the log files from its state. The
    crash histories of another DAG run are not valid, because this DAG run has started all programs again.
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
