"""Interprets the state of a Dataflow job for a task that waits for the job.

docs/dataflow.md has a table of the states.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import Final

from deferrable_ops.upstreams.dataflow.jobs import (
    CANCELLED,
    CANCELLING,
    DONE,
    DRAINED,
    DRAINING,
    FAILED,
    FINISHED,
    PAUSED,
    PAUSING,
    PENDING,
    QUEUED,
    RESOURCE_CLEANING_UP,
    RUNNING,
    STOPPED,
    UNKNOWN,
    UPDATED,
    state_number,
)

EXPECTED_STATES: Final = ("done", "running", "drained")
"""The values of the argument `expected_state`."""

NOT_STARTED: Final = frozenset({UNKNOWN, STOPPED, QUEUED, PENDING})
"""The states of a job that does not run yet. In the API, STOPPED means that a job "has not yet started to run"."""

_UNDER_WAY: Final = NOT_STARTED | {
    RUNNING,
    DRAINING,
    CANCELLING,
    RESOURCE_CLEANING_UP,
    PAUSING,
    PAUSED,
}


class StateMeaning(Enum):
    """What the state of a Dataflow job means for the task that waits for the job."""

    CONTINUE = "continue"
    # The job is in the expected state or in a later state.
    REACHED = "reached"
    FAILED = "failed"
    # An update has replaced the job. The wait continues with the new job.
    REPLACED = "replaced"
    # This version of the library does not know the state. The wait continues, because it may know the next state.
    UNKNOWN = "unknown"


def interpret_state(
    state: int,
    expected: str | None,
    is_streaming: bool | None,
    expected_states: Collection[str] | None = None,
) -> StateMeaning:
    """Return what the state of a job means for the task that waits for the job.

    :param state: the state of the job, as a number of the API's enumeration JobState.
    :param expected: the state for which the task waits, one of :data:`EXPECTED_STATES`. If `expected` is None, the
        state is "running" for a streaming job, and "done" otherwise.
    :param is_streaming: whether the job is a streaming job. `is_streaming` is None if the API has not returned the
        job's type, for example because the job has not started.
    :param expected_states: the names of the states in which the task succeeds. If `expected_states` is None, `expected`
        is used.
    """
    if expected_states is not None:
        return _interpret_expected(state, frozenset(map(state_number, expected_states)))
    awaited = expected or ("running" if is_streaming else "done")
    if state == DONE:
        return StateMeaning.REACHED
    if state == RUNNING and awaited == "running":
        return StateMeaning.REACHED
    if state == DRAINED:
        return StateMeaning.FAILED if awaited == "done" else StateMeaning.REACHED
    if state in (FAILED, CANCELLED):
        return StateMeaning.FAILED
    if state == UPDATED:
        return StateMeaning.REPLACED
    return StateMeaning.CONTINUE if state in _UNDER_WAY else StateMeaning.UNKNOWN


def awaits_drained(expected: str | None, expected_states: Collection[str] | None) -> bool:
    """Return whether a task waits for the state "drained" of its job. Only a streaming job can be drained."""
    if expected_states is None:
        return expected == "drained"
    numbers = set(map(state_number, expected_states))
    return DRAINED in numbers and DONE not in numbers and numbers <= FINISHED


def _interpret_expected(state: int, expected: frozenset[int]) -> StateMeaning:
    if state in expected:
        return StateMeaning.REACHED
    if state == UPDATED:
        return StateMeaning.REPLACED
    if state in (DONE, DRAINED) and not expected <= FINISHED:
        # The job has been in the expected state between two polls.
        return StateMeaning.REACHED
    if state in FINISHED:
        return StateMeaning.FAILED
    return StateMeaning.CONTINUE if state in _UNDER_WAY else StateMeaning.UNKNOWN
