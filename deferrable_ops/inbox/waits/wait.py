"""The classes for a wait: the attempt to which the wait belongs, its state, and its row in the table `waits`."""

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
    """The state of a wait. All states except WAITING are final."""

    WAITING = "waiting"
    SUCCESS = "success"
    FAILED = "failed"
    SKIPPED = "skipped"
    # The deadline passed.
    EXPIRED = "expired"
    # The task was cleared or retried: a newer attempt owns it.
    SUPERSEDED = "superseded"
    # A user, or Airflow, ended the task.
    KILLED = "killed"


ABANDONED: Final = frozenset({WaitState.EXPIRED, WaitState.SUPERSEDED, WaitState.KILLED})
"""Final states that no callback caused. A callback to a wait in one of these states gets a response with status 410."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of one task instance.

    :param ti_id: the UUID of the task instance in Airflow. A retry can have the same UUID, but not the same
        `try_number`.
    :param logical_date: the logical date of the DAG run, in seconds since the epoch; None if the DAG run has no logical
        date.
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
        """Return the attempt of a task instance. `ti` may be an object of any task instance class of Airflow."""
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
        """The id of this attempt's wait: a UUID of version 8 with a hash of `ti_id` and `try_number`.

        The wait id starts with the timestamp in `ti_id` (RFC 9562, 5.7). Because of this timestamp, rows of the same
        age are adjacent in the database, and callbacks that arrive together write to the same pages of the database.
        """
        hashed = str(uuid5(_NAMESPACE, f"{self.ti_id}/{self.try_number}"))
        return f"{UUID(self.ti_id)!s:.13}-8{hashed[15:]}"


@dataclass(frozen=True, slots=True)
class WaitingAttempt:
    """A wait that has not ended: its id, the id of its task instance, and the number of its attempt."""

    wait_id: str
    ti_id: str
    try_number: int


@dataclass(frozen=True, slots=True)
class NewWait:
    """A wait to register.

    :param timeout: seconds from the registration of the wait to its deadline.
    :param latest_deadline: the deadline that Airflow itself sets for the task, minus a margin, in seconds since the
        epoch. The wait's deadline is not later than `latest_deadline`. If `latest_deadline` is None, Airflow sets no
        deadline.
    :param time_left: seconds from now until `latest_deadline`, by the clock of this machine. `latest_deadline` and
        `time_left` can give two different limits if the clocks of this machine and of the database differ. If the two
        limits differ, the later limit is used, because the earlier limit may already have passed.
    :param heartbeat_timeout: the task fails after this many seconds without a heartbeat. If `heartbeat_timeout` is
        None, no heartbeats are expected.
    :param expected: a JSON object with the expressions that evaluate a callback, such as ``failure_when``.
    :param trigger: the encrypted classpath and kwargs of the trigger whose ``cancel()`` stops the external work; None
        if the wait has no external work to stop.
    :param sources: the names of the external systems on which the wait depends, as in the attribute `source` of
        :class:`~deferrable_ops.outages.Outage`.
    :param deadline_pauses: whether the deadline counts only the time in which a triggerer runs the wait's trigger.
    :ivar wait_id: the id of the attempt's wait. To save memory, all objects of a wait share one string with its id.
    """

    attempt: Attempt
    feature: str
    timeout: float
    latest_deadline: float | None = None
    time_left: float = float("-inf")
    heartbeat_timeout: float | None = None
    expected: dict[str, Any] = field(default_factory=dict)
    trigger: bytes | None = None
    sources: tuple[str, ...] = ()
    deadline_pauses: bool = False
    wait_id: str = field(init=False)

    def __post_init__(self) -> None:
        """Compute the wait id."""
        object.__setattr__(self, "wait_id", self.attempt.wait_id)


@dataclass(frozen=True, slots=True)
class Wait:
    """A row of the table `waits`. All times in the row are seconds since the epoch, by the clock of the database.

    :ivar is_new: whether the registration that returned this object created the row. If `is_new` is true, no earlier
        run of the trigger has worked on the wait.
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
    is_new: bool = field(compare=False)


def wait_from_row(row: Row[Any], new: NewWait | None = None, *, is_new: bool = False) -> Wait:
    """Convert a row of the table `waits` to a :class:`Wait`.

    :param new: the object with which the row was registered; None if the caller does not have this object. To save
        memory, the returned wait and `new` share the same attempt and id objects: thousands of waits stay in memory for
        days.
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
    """Return the state of a wait that has a given outcome."""
    match outcome:
        case Success():
            return WaitState.SUCCESS
        case Failure():
            return WaitState.FAILED
        case Skip():
            return WaitState.SKIPPED
