"""What each state of a Dataflow job means for a task that waits for it. docs/dataflow.md shows the same as a table."""

from __future__ import annotations

from enum import Enum
from typing import Final

from deferrable_ops.upstreams.dataflow.jobs import (
    CANCELLED,
    CANCELLING,
    DONE,
    DRAINED,
    DRAINING,
    FAILED,
    PAUSED,
    PAUSING,
    PENDING,
    QUEUED,
    RESOURCE_CLEANING_UP,
    RUNNING,
    STOPPED,
    UNKNOWN,
    UPDATED,
)

EXPECTED_STATES: Final = ("done", "running", "drained")
"""What a task may wait for."""

NOT_STARTED: Final = frozenset({UNKNOWN, STOPPED, QUEUED, PENDING})
"""Before a job runs. STOPPED is one of them: the API's own words for it are "has not yet started to run"."""

_UNDER_WAY: Final = NOT_STARTED | {
    RUNNING,
    DRAINING,
    CANCELLING,
    RESOURCE_CLEANING_UP,
    PAUSING,
    PAUSED,
}


class Meaning(Enum):
    """What a state means for the wait."""

    GO_ON = "go on"
    REACHED = "reached"  # what is waited for, or better than that
    FAILED = "failed"
    REPLACED = "replaced"  # by an update: the new job goes on
    UNHEARD_OF = "unheard of"  # go on: what follows may be known


def meaning(state: int, expected: str | None, is_streaming: bool | None) -> Meaning:
    """Return what a job's state means.

    :param state: the number of the API's JobState.
    :param expected: one of :data:`EXPECTED_STATES`; None: "running" for a streaming job, "done" for any other.
    :param is_streaming: the job's type; None: the API has not said, which it may not before the job starts.
    """
    waited_for = expected or ("running" if is_streaming else "done")
    if state == DONE:
        return Meaning.REACHED
    if state == RUNNING and waited_for == "running":
        return Meaning.REACHED
    if state == DRAINED:
        return Meaning.FAILED if waited_for == "done" else Meaning.REACHED
    if state in (FAILED, CANCELLED):
        return Meaning.FAILED
    if state == UPDATED:
        return Meaning.REPLACED
    return Meaning.GO_ON if state in _UNDER_WAY else Meaning.UNHEARD_OF
