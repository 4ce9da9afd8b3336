"""What Dataflow's API says of jobs and their messages, in Python's own types."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

UNKNOWN, STOPPED, RUNNING, DONE, FAILED, CANCELLED, UPDATED, DRAINING, DRAINED = range(9)
PENDING, CANCELLING, QUEUED, RESOURCE_CLEANING_UP, PAUSING, PAUSED = range(9, 15)

_STATE_NAMES = (
    *("UNKNOWN", "STOPPED", "RUNNING", "DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINING", "DRAINED"),
    *("PENDING", "CANCELLING", "QUEUED", "RESOURCE_CLEANING_UP", "PAUSING", "PAUSED"),
)

FINISHED: Final = frozenset({DONE, FAILED, CANCELLED, UPDATED, DRAINED})
"""The states that a job never leaves."""

IMPORTANCES: Final = ("DEBUG", "DETAILED", "BASIC", "WARNING", "ERROR")
"""Of messages, the least important first. Their numbers in the API are in another order."""

_IMPORTANCE_OF_NUMBER = {1: "DEBUG", 2: "DETAILED", 5: "BASIC", 3: "WARNING", 4: "ERROR"}
NUMBER_OF_IMPORTANCE: Final = {name: number for number, name in _IMPORTANCE_OF_NUMBER.items()}

_IS_STREAMING = {1: False, 2: True}
_TYPE_NAMES = {None: None, False: "JOB_TYPE_BATCH", True: "JOB_TYPE_STREAMING"}
_LATE_SECONDS = 10  # how much later than its own time a message may turn up and still be read
_IDS_KEPT = 200  # they are stored at every step of the cursor


@dataclass(frozen=True, slots=True)
class Job:
    """A job as Dataflow described it.

    :param state: the number of the API's JobState, also one that this version does not know.
    :param state_name: ``JOB_STATE_DONE``; ``JOB_STATE_99`` for an unknown number.
    :param is_streaming: None when the API did not say.
    :param labels: empty where the API leaves them out: in lists.
    :param replaced_by: the id of the job that this one was updated to.
    :param created_at: RFC 3339, as ``2026-11-21T09:59:50.000000000Z``; as are the other times.
    :param message: the API's own message, when the job came from there.
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
    message: Any = field(default=None, repr=False, compare=False)

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
        if self.message is None:
            return _without_nothing(
                id=self.id,
                name=self.name,
                projectId=self.project_id,
                location=self.region,
                type=_TYPE_NAMES[self.is_streaming],
                currentState=self.state_name,
                currentStateTime=self.state_since,
                createTime=self.created_at,
                startTime=self.started_at,
                labels=self.labels or None,
                replacedByJobId=self.replaced_by,
            )
        from google.protobuf.json_format import MessageToDict

        described: dict[str, Any] = MessageToDict(self.message)
        return described | {"currentState": self.state_name, "location": self.region}


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
    :param ids: of the messages at that time or later that have been read.
    """

    time: str
    ids: tuple[str, ...] = ()

    def unread(self, messages: Sequence[JobMessage]) -> tuple[JobMessage, ...]:
        """Return those of a job's messages that have not been read yet."""
        return tuple(message for message in messages if _id(message) not in self.ids)

    def after(self, messages: Sequence[JobMessage]) -> MessageCursor:
        """Return the cursor once these messages, all that there are from its time on, have been read.

        It stays a little behind the newest message, because messages turn up late and out of order.
        """
        if not messages:
            return self
        newest = max(message.time for message in messages)
        kept = sorted(messages, key=lambda message: message.time)[-_IDS_KEPT:]
        # Beyond _IDS_KEPT the cursor closes up: all messages from its time on have to be among the ids.
        start = max(self.time, _earlier(newest), kept[0].time if len(kept) < len(messages) else "")
        return MessageCursor(start, tuple(_id(message) for message in messages if message.time >= start))

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


def state_number(state: str | int) -> int:
    """Return the number of a state: of ``RUNNING``, of ``JOB_STATE_RUNNING``, or of a number."""
    return state if isinstance(state, int) else _STATE_NAMES.index(state.removeprefix("JOB_STATE_"))


def job_from_api(message: Any, project_id: str, region: str) -> Job:
    """Return what a Job message of the API says.

    :param project_id: for when the message does not name it; as the region.
    """
    return Job(
        id=message.id,
        name=message.name,
        project_id=message.project_id or project_id,
        region=message.location or region,
        state=int(message.current_state),
        is_streaming=_IS_STREAMING.get(int(message.type_)),
        labels=dict(message.labels),
        replaced_by=message.replaced_by_job_id or None,
        created_at=_time(message, "create_time"),
        started_at=_time(message, "start_time"),
        state_since=_time(message, "current_state_time"),
        message=_alone(message),
    )


def message_from_api(message: Any) -> JobMessage:
    """Return what a JobMessage message of the API says."""
    importance = _IMPORTANCE_OF_NUMBER.get(int(message.message_importance), "BASIC")
    time = _time(message, "time") or _text_of(0, 0)
    return JobMessage(message.id, time, importance, message.message_text)


def _id(message: JobMessage) -> str:
    # The API's own ids are deprecated there: they may be missing one day.
    said = f"{message.time}{message.id}{message.text}".encode()
    return hashlib.blake2b(said, digest_size=6).hexdigest()


def _alone(message: Any) -> Any:
    # A message keeps all that it was received with, and who waits for a job keeps the job: a list of 500 jobs for each.
    alone = type(message)()
    alone.CopyFrom(message)
    return alone


def _time(message: Any, name: str) -> str | None:
    if not message.HasField(name):
        return None
    timestamp = getattr(message, name)
    return _text_of(timestamp.seconds, timestamp.nanos)


def _text_of(seconds: int, nanoseconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def _earlier(time: str) -> str:
    whole, _, fraction = time.partition(".")
    moved = datetime.fromisoformat(whole) - timedelta(seconds=_LATE_SECONDS)
    return f"{moved:%Y-%m-%dT%H:%M:%S}.{fraction}"


def _without_nothing(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
