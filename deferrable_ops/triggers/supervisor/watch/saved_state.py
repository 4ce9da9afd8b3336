"""What a watching task keeps in the inbox, and what it takes over from the one before it."""

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
    """What is known when the watching begins.

    :param histories: of processes, by full name: a pause that lasts must not be taken for an end.
    :param output: up to where each log was copied.
    :param is_ours: all of that was seen by this DAG run.
    :param is_retry: it was seen by an attempt of this DAG run before this one, which has kept nothing yet.
    """

    histories: dict[str, CrashHistory] = field(default_factory=dict)
    output: Mapping[str, Any] = field(default_factory=dict)
    is_ours: bool = False
    is_retry: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        histories = {name: history.to_json() for name, history in self.histories.items()}
        return {"programs": histories, "output": dict(self.output)}


async def load_saved_state(inbox: Inbox, wait: Wait) -> SavedState:
    """Return what this attempt has kept; else what is good of the attempt before it, of this DAG run or of another.

    Another run may have found a crash loop, and this one has started all programs since; but the logs go on.
    """
    if (own := _read(wait.progress)) is not None:
        return own
    for before in await inbox.waits.find(_is_the_one_before(wait)):
        if (found := _read(before.progress)) is not None:
            same_run = before.attempt.run_id == wait.attempt.run_id
            return replace(found, is_retry=True) if same_run else SavedState(output=found.output)
    return SavedState()


def _read(progress: Any) -> SavedState | None:
    match progress:
        case {"programs": dict(histories), "output": dict(output)}:
            return SavedState(
                {name: CrashHistory.from_json(told) for name, told in histories.items()}, output, True
            )
    return None


def _is_the_one_before(wait: Wait) -> ColumnElement[bool]:
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
