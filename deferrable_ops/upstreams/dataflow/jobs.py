"""Dataflow jobs and their messages as Python types, and the project and region that they are in."""

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
"""The final states."""

IMPORTANCES: Final = ("DEBUG", "DETAILED", "BASIC", "WARNING", "ERROR")
"""The importances of job messages, the least important first. The API numbers them in another order."""

_IMPORTANCE_OF_NUMBER = {1: "DEBUG", 2: "DETAILED", 5: "BASIC", 3: "WARNING", 4: "ERROR"}
NUMBER_OF_IMPORTANCE: Final = {name: number for number, name in _IMPORTANCE_OF_NUMBER.items()}

_IS_STREAMING = {1: False, 2: True}
_TYPE_NAMES = {None: None, False: "JOB_TYPE_BATCH", True: "JOB_TYPE_STREAMING"}
# The API may return a message only this many seconds after the message's own time.
_LATE_SECONDS = 10
# Each cursor stores ids of messages, so their number is limited.
_IDS_KEPT = 200


@dataclass(frozen=True, slots=True)
class DataflowTarget:
    """The project and region of jobs, and the credentials. All waits with the same target share a client and a poller.

    :param gcp_conn_id: an Airflow connection; None uses the application default credentials.
    :param impersonation_chain: service accounts; the last one is the account to act as.
    """

    project_id: str
    region: str
    gcp_conn_id: str | None = None
    impersonation_chain: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """A job as returned by Dataflow.

    :param state: the number of the API's JobState; this version of the library may not know it.
    :param state_name: ``JOB_STATE_DONE``; ``JOB_STATE_99`` for an unknown number.
    :param is_streaming: None if the API did not return the job's type.
    :param labels: the labels; empty if the job comes from a list, because the API omits labels in lists.
    :param replaced_by: the id of the job that has replaced this job by an update.
    :param created_at: a time as RFC 3339, e.g. ``2026-11-21T09:59:50.000000000Z``; the other times have the same
        format.
    :param message: the API's protobuf message, if the job was read from the API.
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
        """The state's name in the API."""
        return state_name(self.state)

    @property
    def is_finished(self) -> bool:
        """Whether the job is in a final state."""
        return self.state in FINISHED

    def as_dict(self) -> dict[str, Any]:
        """Return the job in the API's JSON format (camelCase)."""
        if self.message is None:
            return _without_none(
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

    :param time: RFC 3339 with a fixed number of digits, so that the strings can be sorted by time.
    :param importance: one of `IMPORTANCES`.
    """

    id: str
    time: str
    importance: str
    text: str


@dataclass(frozen=True, slots=True)
class MessageCursor:
    """A position in a job's messages. All messages before it have been read.

    :param time: RFC 3339; the next read starts here.
    :param ids: the hashes of the messages at or after that time that have been read.
    """

    time: str
    ids: tuple[str, ...] = ()

    def unread(self, messages: Sequence[JobMessage]) -> tuple[JobMessage, ...]:
        """Return the messages that have not been read yet."""
        return tuple(message for message in messages if _hash(message) not in self.ids)

    def after(self, messages: Sequence[JobMessage]) -> MessageCursor:
        """Return the cursor after reading these messages.

        The cursor stays a few seconds behind the newest message, because the API may return messages late and out of
        order.

        :param messages: all messages from this cursor's time on.
        """
        if not messages:
            return self
        newest = max(message.time for message in messages)
        kept = sorted(messages, key=lambda message: message.time)[-_IDS_KEPT:]
        # The cursor's ids must include all messages from the cursor's time on. If there are more than _IDS_KEPT
        # messages, a later time is used.
        start = max(self.time, _earlier(newest), kept[0].time if len(kept) < len(messages) else "")
        return MessageCursor(start, tuple(_hash(message) for message in messages if message.time >= start))

    def as_json(self) -> dict[str, Any]:
        """Return the cursor as JSON."""
        return {"time": self.time, "ids": list(self.ids)}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> MessageCursor:
        """Return the cursor from the JSON that :meth:`as_json` returned."""
        return cls(stored["time"], tuple(stored["ids"]))


@dataclass(frozen=True, slots=True)
class MessagesWanted:
    """Which of a job's messages to read while it is watched.

    :param least: the lowest importance, one of `IMPORTANCES`.
    :param after: the position at which to continue; None reads from the start of the job.
    """

    least: str = "WARNING"
    after: MessageCursor | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """A change of a watched job.

    :param job: the job, if its state changed; None if the update contains only new messages.
    :param messages: the new messages, the oldest first.
    :param cursor: the position after these messages, to be stored once they are handled; None before the first message.
    """

    job: Job | None = None
    messages: tuple[JobMessage, ...] = ()
    cursor: MessageCursor | None = None


def state_name(number: int) -> str:
    """Return the API's name of a state; ``JOB_STATE_<number>`` if this version does not know the state."""
    known = 0 <= number < len(_STATE_NAMES)
    return f"JOB_STATE_{_STATE_NAMES[number] if known else number}"


def state_number(state: str | int) -> int:
    """Return the number of a state, given as ``RUNNING``, ``JOB_STATE_RUNNING`` or a number."""
    return state if isinstance(state, int) else _STATE_NAMES.index(state.removeprefix("JOB_STATE_"))


def job_from_api(message: Any, project_id: str, region: str) -> Job:
    """Return a job from the API's protobuf message.

    :param project_id: the project if the message has no project; `region` is used in the same way.
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
        message=_copy(message),
    )


def message_from_api(message: Any) -> JobMessage:
    """Return a job message from the API's protobuf message."""
    importance = _IMPORTANCE_OF_NUMBER.get(int(message.message_importance), "BASIC")
    time = _time(message, "time") or _rfc3339(0, 0)
    return JobMessage(message.id, time, importance, message.message_text)


def _hash(message: JobMessage) -> str:
    # The API's message ids are deprecated, so they may be missing in the future.
    content = f"{message.time}{message.id}{message.text}".encode()
    return hashlib.blake2b(content, digest_size=6).hexdigest()


def _copy(message: Any) -> Any:
    # A protobuf message keeps its parent in memory. Without a copy, each wait would keep not only its job but a list of
    # 500 jobs.
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _time(message: Any, name: str) -> str | None:
    if not message.HasField(name):
        return None
    timestamp = getattr(message, name)
    return _rfc3339(timestamp.seconds, timestamp.nanos)


def _rfc3339(seconds: int, nanoseconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def _earlier(time: str) -> str:
    whole, _, fraction = time.partition(".")
    moved = datetime.fromisoformat(whole) - timedelta(seconds=_LATE_SECONDS)
    return f"{moved:%Y-%m-%dT%H:%M:%S}.{fraction}"


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
