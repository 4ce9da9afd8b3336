"""What a wait is: its attempt, its state, and the row that the inbox keeps of it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID, uuid5

from sqlalchemy import Row

from deferrable_ops.outcome import Failure, Outcome, Skip, Success, outcome_from_json

_NAMESPACE: Final = UUID("6f1f9d3c-3f0e-5c6b-9a86-6d1c1f0c2a11")


class WaitState(StrEnum):
    """Where a wait stands. All but WAITING are final."""

    WAITING = "waiting"
    SUCCESS = "success"
    FAILED = "failed"
    SKIPPED = "skipped"
    EXPIRED = "expired"  # its deadline passed
    SUPERSEDED = "superseded"  # the task was cleared or retried: a newer attempt owns it
    KILLED = "killed"  # a user, or Airflow, ended the task


ABANDONED: Final = frozenset({WaitState.EXPIRED, WaitState.SUPERSEDED, WaitState.KILLED})
"""States that nobody outside chose; a callback to such a wait is answered with 410."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of one task instance.

    :param ti_id: Airflow's UUID of the task instance; it can stay the same over a retry, so `try_number` belongs to it.
    :param logical_date: seconds since the epoch, None for a run without one.
    """

    ti_id: str
    try_number: int
    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    logical_date: float | None = None

    @classmethod
    def of(cls, ti: Any, logical_date: datetime | None) -> Attempt:
        """Return the attempt that one of Airflow's task instances is, of whatever class."""
        return cls(
            ti_id=str(ti.id),
            try_number=ti.try_number,
            dag_id=ti.dag_id,
            run_id=ti.run_id,
            task_id=ti.task_id,
            map_index=-1 if ti.map_index is None else ti.map_index,
            logical_date=None if logical_date is None else logical_date.timestamp(),
        )

    @property
    def wait_id(self) -> str:
        """The wait's id: the same wherever it is computed, a UUID of version 8.

        It starts with the time that Airflow's own id starts with (RFC 9562, 5.7): rows of one age then lie side by side
        in the database, and a callback writes a page that its neighbours write too.
        """
        hashed = str(uuid5(_NAMESPACE, f"{self.ti_id}/{self.try_number}"))
        return f"{UUID(self.ti_id)!s:.13}-8{hashed[15:]}"


@dataclass(frozen=True, slots=True)
class NewWait:
    """What is registered when an attempt starts to wait.

    :param timeout: seconds from now until the deadline.
    :param latest_deadline: seconds since the epoch, which the deadline never exceeds: Airflow's own, less a margin.
    :param time_left: seconds from now until then, by the clock of the machine that registers the wait. Where its clock
        and the database's disagree by an hour, one of them would end the wait at once: the later counts.
    :param heartbeat_timeout: seconds between two beats after which the wait fails; None: no beats are expected.
    :param expected: what the endpoint needs to judge a callback; a JSON object.
    :param trigger: the encrypted classpath and kwargs of the trigger whose ``cancel()`` stops the outside work;
        None where nothing needs to be stopped.
    :ivar wait_id: the attempt's, computed once, and kept once of thousands of waits.
    """

    attempt: Attempt
    feature: str
    timeout: float
    latest_deadline: float | None = None
    time_left: float = float("-inf")
    heartbeat_timeout: float | None = None
    expected: dict[str, Any] = field(default_factory=dict)
    trigger: bytes | None = None
    wait_id: str = field(init=False)

    def __post_init__(self) -> None:
        """Compute the id."""
        object.__setattr__(self, "wait_id", self.attempt.wait_id)


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait's row. Times are seconds since the epoch by the database's clock.

    :ivar is_new: whether it is known that nobody registered it before whoever holds this; so nothing has been done for
        it yet.
    """

    id: str
    attempt: Attempt
    feature: str
    state: WaitState
    deadline: float
    created_at: float
    settled_at: float | None
    heartbeat_timeout: float | None
    last_beat: float | None
    key_id: str
    progress: Any
    outcome: Outcome | None
    launched_at: float | None
    launch_claimed: bool
    launch_answer: Any
    cancel: str | None
    is_new: bool = field(compare=False)  # of the same row


def wait_from_row(row: Row[Any], new: NewWait | None = None, *, is_new: bool = False) -> Wait:
    """Return the wait that a full row of the table holds.

    :param new: what was registered as this row, where the caller has it: the wait then shares its attempt and its id,
        because thousands are kept for days.
    """
    if new is None:
        attempt = Attempt(
            row.ti_id, row.try_number, row.dag_id, row.run_id, row.task_id, row.map_index, row.logical_date
        )
    else:
        attempt = new.attempt
    return Wait(
        id=row.id if new is None else new.wait_id,
        attempt=attempt,
        feature=sys.intern(row.feature),
        state=WaitState(row.state),
        deadline=row.deadline,
        created_at=row.created_at,
        settled_at=row.settled_at,
        heartbeat_timeout=row.heartbeat_timeout,
        last_beat=row.last_beat,
        key_id=sys.intern(row.key_id),
        progress=None if row.progress is None else json.loads(row.progress),
        outcome=None if row.outcome is None else outcome_from_json(json.loads(row.outcome)),
        launched_at=row.launched_at,
        launch_claimed=row.launch_owner is not None,
        launch_answer=None if row.launch_answer is None else json.loads(row.launch_answer),
        cancel=row.cancel,
        is_new=is_new,
    )


def state_of(outcome: Outcome) -> WaitState:
    """Return the state of a wait that ended with this outcome."""
    match outcome:
        case Success():
            return WaitState.SUCCESS
        case Failure():
            return WaitState.FAILED
        case Skip():
            return WaitState.SKIPPED
