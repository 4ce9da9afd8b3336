"""Python types for Dataflow jobs, their messages, and their project and region."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from deferrable_ops.exceptions import DataflowRefused, DataflowUnavailable

UNKNOWN, STOPPED, RUNNING, DONE, FAILED, CANCELLED, UPDATED, DRAINING, DRAINED = range(9)
PENDING, CANCELLING, QUEUED, RESOURCE_CLEANING_UP, PAUSING, PAUSED = range(9, 15)

_STATE_NAMES = (
    *("UNKNOWN", "STOPPED", "RUNNING", "DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINING", "DRAINED"),
    *("PENDING", "CANCELLING", "QUEUED", "RESOURCE_CLEANING_UP", "PAUSING", "PAUSED"),
)

STATE_NAMES: Final = frozenset(f"JOB_STATE_{name}" for name in _STATE_NAMES) | frozenset(_STATE_NAMES)
"""The API's names of the states of a job, with and without ``JOB_STATE_``."""

FINISHED: Final = frozenset({DONE, FAILED, CANCELLED, UPDATED, DRAINED})
"""The final states of a Dataflow job."""

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

MAX_MESSAGES: Final = 200
"""One read returns at most this number of messages of a job: the newest messages. The others are only counted."""


@dataclass(frozen=True, slots=True)
class DataflowTarget:
    """A project and region of Dataflow jobs, and the credentials. All waiting tasks with the same project, region and
    credentials share one client.

    :param project_id: the id of the Google Cloud project; if it is empty, the project of the credentials is used.
    :param gcp_conn_id: the id of the Airflow connection that contains the credentials. If ``gcp_conn_id`` is None, the
        connection ``google_cloud_default`` or the application default credentials are used.
    :param impersonation_chain: the Google service accounts to impersonate, one after the other. The last account makes
        the API calls. An empty tuple impersonates no account.
    """

    project_id: str
    region: str
    gcp_conn_id: str | None = None
    impersonation_chain: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """The name under which outages of this region are reported. It contains the account, because other accounts
        may reach the same region.
        """
        accounts = [f"connection {self.gcp_conn_id}"] if self.gcp_conn_id else []
        accounts += [f"as {self.impersonation_chain[-1]}"] if self.impersonation_chain else []
        return sys.intern(
            f"Dataflow ({', '.join([self.project_id or 'default project', self.region, *accounts])})"
        )


@dataclass(frozen=True, slots=True)
class Job:
    """A Dataflow job, with the values that the API returned.

    :param state: the job's state, as a number of the API's enumeration JobState. The number may be unknown to this
        version of the library.
    :param state_name: the API's name of the state, such as ``JOB_STATE_DONE``, or ``JOB_STATE_99`` for the unknown
        number 99.
    :param is_streaming: whether the job is a streaming job. `is_streaming` is None if the API did not return the job's
        type.
    :param labels: the job's labels. Empty if the job was read from a list of jobs, because the API omits labels in
        lists.
    :param replaced_by: the id of the new job, if a Dataflow update has replaced this job; otherwise None.
    :param created_at: the time when the job was created, as an RFC 3339 string with nanoseconds.
    :param message: the API's protobuf message for the job, or None if the job was not read from the API.
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
    """A message of a Dataflow job.

    :param time: the message's time as an RFC 3339 string. All strings have the same number of digits, so that messages
        can be sorted by time.
    :param importance: the message's importance, one of `IMPORTANCES`.
    """

    id: str
    time: str
    importance: str
    text: str


@dataclass(frozen=True, slots=True)
class MessageList:
    """The messages of a job from one read.

    :param messages: at most `MAX_MESSAGES` messages, the oldest first.
    :param left_out: how many older messages were left out.
    """

    messages: tuple[JobMessage, ...]
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class MessageCursor:
    """A position in the messages of a Dataflow job. All messages before this position have been read.

    :param time: the time from which the next call reads messages, as an RFC 3339 string.
    :param ids: the hashes of the messages that have already been read and are not older than ``time``.
    """

    time: str
    ids: tuple[str, ...] = ()

    def unread(self, found: MessageList) -> MessageList:
        """Return the messages that have not been read yet, and how many such messages were left out.

        :param found: all messages that have this cursor's time or a later time.
        """
        new = tuple(message for message in found.messages if _hash(message) not in self.ids)
        read_and_left_out = len(self.ids) - (len(found.messages) - len(new))
        return MessageList(new, max(0, found.left_out - read_and_left_out))

    def after(self, found: MessageList) -> MessageCursor:
        """Return the new cursor after these messages have been read.

        The cursor stays a few seconds behind the newest message, because the API may return messages late and out of
        order.

        :param found: all messages that have this cursor's time or a later time.
        """
        messages = found.messages
        if not messages:
            return self
        newest = max(message.time for message in messages)
        kept = sorted(messages, key=lambda message: message.time)[-_IDS_KEPT:]
        # The cursor's ids must include all messages from the cursor's time on. If there are more than _IDS_KEPT
        # messages, a later time is used.
        start = max(self.time, _earlier(newest), kept[0].time if len(kept) < len(messages) else "")
        if found.left_out:
            # Otherwise the next read would count the messages that were left out again.
            start = max(start, _next_nanosecond(messages[0].time))
        return MessageCursor(start, tuple(_hash(message) for message in messages if message.time >= start))

    def as_json(self) -> dict[str, Any]:
        """Return the message cursor as a JSON object."""
        return {"time": self.time, "ids": list(self.ids)}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> MessageCursor:
        """Return the message cursor from the JSON object that :meth:`as_json` returned."""
        return cls(stored["time"], tuple(stored["ids"]))


@dataclass(frozen=True, slots=True)
class MessagesWanted:
    """Which messages of a Dataflow job to read while the job is watched.

    :param least: the lowest importance of the messages to read, one of `IMPORTANCES`.
    :param after: the position after which messages are read. If ``after`` is None, all messages of the job are read.
    """

    least: str = "WARNING"
    after: MessageCursor | None = None


@dataclass(frozen=True, slots=True)
class ReadProblem:
    """The error of the last read of a watched job. Because of this error, the job's state is not known at the moment.

    :param seconds: for how many seconds each read of the job has failed with the same gRPC status.
    :param reads: how many reads have failed with this status.
    """

    error: DataflowRefused | DataflowUnavailable
    seconds: float
    reads: int


@dataclass(frozen=True, slots=True)
class Update:
    """A change of a watched Dataflow job.

    :param job: the job, if the job's state changed. `job` is None if the update contains only new messages.
    :param messages: the new messages, the oldest first.
    :param left_out: how many new messages, which are older than `messages`, were left out.
    :param cursor: the position after these messages, or None before the first message. Store the cursor after the
        messages were handled.
    :param problem: why the job cannot be read now, or None if the last read succeeded.
    """

    job: Job | None = None
    messages: tuple[JobMessage, ...] = ()
    left_out: int = 0
    cursor: MessageCursor | None = None
    problem: ReadProblem | None = None


def state_name(number: int) -> str:
    """Return the API's name of a job state. If the state is unknown to this version, return ``JOB_STATE_<number>``."""
    known = 0 <= number < len(_STATE_NAMES)
    return f"JOB_STATE_{_STATE_NAMES[number] if known else number}"


def state_number(state: str | int) -> int:
    """Return the number of a job state. The state is given as ``RUNNING``, ``JOB_STATE_RUNNING`` or a number."""
    return state if isinstance(state, int) else _STATE_NAMES.index(state.removeprefix("JOB_STATE_"))


def job_from_api(message: Any, project_id: str, region: str) -> Job:
    """Convert the API's protobuf message to a :class:`Job`.

    :param project_id: the job's project if the message contains no project.
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
    """Convert the API's protobuf message to a :class:`JobMessage`."""
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


def _next_nanosecond(time: str) -> str:
    whole, _, fraction = time.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(f"{whole}+00:00").timestamp())
    carry, nanoseconds = divmod(int(fraction) + 1, 1_000_000_000)
    return _rfc3339(seconds + carry, nanoseconds)


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
