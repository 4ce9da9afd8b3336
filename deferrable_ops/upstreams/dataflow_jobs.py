"""What Dataflow's API says of jobs and their messages, in Python's own types."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

UNKNOWN, STOPPED, RUNNING, DONE, FAILED, CANCELLED, UPDATED, DRAINING, DRAINED = range(9)
PENDING, CANCELLING, QUEUED, RESOURCE_CLEANING_UP, PAUSING, PAUSED = range(9, 15)

_STATE_NAMES = (
    "UNKNOWN STOPPED RUNNING DONE FAILED CANCELLED UPDATED DRAINING DRAINED "
    "PENDING CANCELLING QUEUED RESOURCE_CLEANING_UP PAUSING PAUSED"
).split()

FINISHED: Final = frozenset({DONE, FAILED, CANCELLED, UPDATED, DRAINED})
"""The states that a job never leaves."""

IMPORTANCES: Final = ("DEBUG", "DETAILED", "BASIC", "WARNING", "ERROR")
"""Of messages, the least important first. Their numbers in the API are in another order."""

_IMPORTANCE_OF_NUMBER = {1: "DEBUG", 2: "DETAILED", 5: "BASIC", 3: "WARNING", 4: "ERROR"}
NUMBER_OF_IMPORTANCE: Final = {name: number for number, name in _IMPORTANCE_OF_NUMBER.items()}

_JOB_TYPES = {1: False, 2: True}
_OVERLAP_SECONDS = 10  # how much later than its own time a message may turn up and still be read
_IDS_KEPT = 200


@dataclass(frozen=True, slots=True)
class Job:
    """A job as Dataflow described it.

    :param state: the number of the API's JobState, also one that this version does not know.
    :param state_name: ``JOB_STATE_DONE``; ``JOB_STATE_99`` for an unknown number.
    :param is_streaming: None when the API did not say.
    :param labels: empty where the API leaves them out: in lists.
    :param replaced_by: the id of the job that this one was updated to.
    :param created_at: RFC 3339, as ``2026-11-21T09:59:50.000000Z``; as are the other times.
    """

    id: str
    name: str
    project_id: str
    region: str
    state: int
    is_streaming: bool | None = None
    labels: dict[str, str] = field(default_factory=dict)
    replaced_by: str | None = None
    created_at: str | None = None
    started_at: str | None = None
    state_since: str | None = None
    json: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def state_name(self) -> str:
        """Return the state's name in the API."""
        return state_name(self.state)

    @property
    def is_finished(self) -> bool:
        """Return whether the job has ended, one way or another."""
        return self.state in FINISHED

    def as_dict(self) -> dict[str, Any]:
        """Return the job in the API's own JSON (camelCase), of JSON's types only."""
        return dict(self.json)


@dataclass(frozen=True, slots=True)
class JobMessage:
    """A message of a job.

    :param time: RFC 3339, always of the same width, so that texts sort as times do.
    :param importance: one of `IMPORTANCES`.
    """

    id: str
    time: str
    importance: str
    text: str


@dataclass(frozen=True, slots=True)
class MessageCursor:
    """How far a job's messages have been read.

    :param time: RFC 3339; where reading goes on.
    :param ids: the messages at that time or later that have been read.
    """

    time: str
    ids: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return what can be stored, of JSON's types only."""
        return {"time": self.time, "ids": list(self.ids)}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> MessageCursor:
        """Return what was stored."""
        return cls(stored["time"], tuple(stored["ids"]))


@dataclass(frozen=True, slots=True)
class MessagesWanted:
    """Which of a job's messages to read while it is watched.

    :param least: the least importance, of `IMPORTANCES`.
    :param after: what was read before; None reads them from the job's beginning.
    """

    least: str = "WARNING"
    after: MessageCursor | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """What is new of a watched job.

    :param job: when its state changed; None when only messages are new.
    :param messages: the new ones, the oldest first.
    :param cursor: to be stored once the messages have been dealt with; None as long as none was ever read.
    """

    job: Job | None = None
    messages: tuple[JobMessage, ...] = ()
    cursor: MessageCursor | None = None


def state_name(number: int) -> str:
    """Return the API's name of a state: ``JOB_STATE_<number>`` when this version does not know it."""
    known = 0 <= number < len(_STATE_NAMES)
    return f"JOB_STATE_{_STATE_NAMES[number] if known else number}"
