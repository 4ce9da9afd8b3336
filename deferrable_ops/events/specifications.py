"""Event specifications: an event specification selects the events that a task waits for.

An event specification is immutable, and several tasks may share one specification. An operator's template field stores
the dict that :func:`specification_to_json` returns. Airflow renders this dict into a new dict, so the shared
specification does not change. If the template field stored an object with ``template_fields``, Airflow would modify
this object for every task that shares the object.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final
from urllib.parse import urlsplit

from deferrable_ops.events.queues import queue_of
from deferrable_ops.exceptions import InputError
from deferrable_ops.expressions import check_expression
from deferrable_ops.plain_data import has_template, is_known_later, is_output, plain_copy

Match = dict[str, Any] | str | None
"""A dict of expected values, a JMESPath expression, or None for every event."""

MAX_MATCH_DEPTH: Final = 20
"""How many levels a ``match`` dict may have. The number is limited, because the functions that copy, send and compare
the dict are recursive."""

# Only these characters are allowed, because the name is part of the channel's URL.
_CHANNEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Kafka's own rule for topic names, from org.apache.kafka.common.internals.Topic.
_TOPIC: Final = re.compile(r"(?!\.{1,2}$)[a-zA-Z0-9._-]{1,249}")


@dataclass(frozen=True, slots=True)
class ChannelEvent:
    """An event that an external system posts to a channel of the endpoint.

    :param name: the channel's name, as in ``deferrable-ops channels add NAME``: at most 128 letters, digits, ``.``,
        ``_`` and ``-``.
    :param match: selects events of the channel: a dict of expected values, nested like the payload, or a JMESPath
        expression that must be true. None selects every event. ``match`` may contain templates. The top-level names in
        ``match`` are the payload's keys and ``headers``, ``attributes`` (of a CloudEvent), ``metadata`` and ``payload``
        (the whole payload, also if it is a string). If the payload has a key ``headers``, ``attributes`` or
        ``metadata``, this name means the field of the event, not the key of the payload. If the payload has a key
        ``payload``, the name ``payload`` means the value of this key.
    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
    """

    name: str
    match: Match = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the arguments."""
        _check_text(
            "name", self.name, _CHANNEL, "letters, digits, '.', '_' and '-', beginning with a letter or digit"
        )
        object.__setattr__(self, "match", _checked_match(self.match))

    @property
    def source(self) -> str:
        """The source name under which the inbox stores the events that this specification can select. The name is
        valid only after the templates are rendered.
        """
        return f"channel:{self.name}"


@dataclass(frozen=True, slots=True)
class KafkaEvent:
    """A record of a Kafka topic.

    :param topic: the topic's name.
    :param match: selects records, like `match` of :class:`ChannelEvent`. The top-level names in `match` are the
        payload's keys and ``headers``, ``key``, ``metadata`` (topic, partition, offset, timestamp) and ``payload``.
    :param kafka_conn_id: the id of the Airflow connection (type ``kafka``) with which the topic is read.
    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
    """

    topic: str
    match: Match = field(default=None, kw_only=True)
    kafka_conn_id: str = field(default="kafka_default", kw_only=True)

    def __post_init__(self) -> None:
        """Check the arguments."""
        _check_text("topic", self.topic, _TOPIC, "a topic name of letters, digits, '.', '_' and '-'")
        _check_conn_id("kafka_conn_id", self.kafka_conn_id)
        object.__setattr__(self, "match", _checked_match(self.match))

    @property
    def source(self) -> str:
        """The source name under which the inbox stores the events that this specification can select. The name is
        valid only after the templates are rendered.
        """
        return f"kafka:{self.kafka_conn_id}/{self.topic}"


@dataclass(frozen=True, slots=True)
class SqsEvent:
    """A message of an SQS queue. Only this library may read the queue.

    :param queue_url: the queue's URL.
    :param dedicated: must be True, to confirm that nothing else reads the queue. Each message is written to the inbox
        and then deleted from the queue. One message in the inbox can match the specifications of several waiting
        tasks; a match does not consume the message.
    :param match: selects messages, like `match` of :class:`ChannelEvent`. The top-level names in `match` are the
        payload's keys and ``attributes`` (the message attributes), ``metadata`` (MessageId, SentTimestamp, SenderId
        ...) and ``payload``.
    :param aws_conn_id: the id of the Airflow connection (type ``aws``) with which the queue is read. If `aws_conn_id`
        is None, the queue is read with the AWS credentials of the triggerer's machine.
    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
    """

    queue_url: str
    dedicated: bool = field(default=False, kw_only=True)
    match: Match = field(default=None, kw_only=True)
    aws_conn_id: str | None = field(default="aws_default", kw_only=True)

    def __post_init__(self) -> None:
        """Check the arguments."""
        _check_queue_url(self.queue_url)
        if self.dedicated is not True:
            raise InputError(
                "dedicated=True is missing; add it to confirm that only this library reads the queue, because stored "
                "messages are deleted from the queue. If other programs need the messages too, publish the messages "
                "to an SNS topic. Subscribe one queue per reader to the topic, with raw message delivery (fan-out), "
                "and give the URL of the queue for this library with dedicated=True"
            )
        if self.aws_conn_id is not None:
            _check_conn_id("aws_conn_id", self.aws_conn_id)
        object.__setattr__(self, "match", _checked_match(self.match))

    @property
    def source(self) -> str:
        """The source name under which the inbox stores the events that this specification can select. The name is
        valid only after the templates are rendered.

        The source name contains the queue's ARN. A queue may have several URLs, but it delivers each message to only
        one reader. So tasks that wait for the same queue with different URLs must share one reader. The ARN is derived
        from the URL, so no call to SQS is needed. For servers other than AWS, the name contains the URL.
        """
        is_template = is_known_later(self.queue_url)
        return f"sqs:{self.queue_url}" if is_template else queue_of(self.queue_url).source


Specification = ChannelEvent | KafkaEvent | SqsEvent

_TYPES: Final[dict[str, type[ChannelEvent | KafkaEvent | SqsEvent]]] = {
    "channel": ChannelEvent,
    "kafka": KafkaEvent,
    "sqs": SqsEvent,
}


def specification_to_json(specification: Specification) -> dict[str, Any]:
    """Convert a specification into a JSON object. Templates and references to other tasks' outputs are not changed.

    :raises InputError: if the argument is not an event specification.
    """
    for name, kind in _TYPES.items():
        if type(specification) is kind:
            values = {item.name: getattr(specification, item.name) for item in fields(kind)}
            return (
                {"type": name}
                | values
                | {"match": plain_copy("match=", specification.match, MAX_MATCH_DEPTH)}
            )
    raise InputError(
        f"{specification!r} is not an event; give a ChannelEvent, KafkaEvent or SqsEvent from deferrable_ops.events"
    )


def specification_from_json(data: Any) -> Specification:
    """Convert the result of :func:`specification_to_json` back into a specification, after its templates are rendered.

    Keys that this version of the library does not know are ignored.

    :raises InputError: if `data` is not an event specification, or if a rendered argument is wrong.
    """
    kind = _TYPES.get(str(data.get("type"))) if isinstance(data, Mapping) else None
    if kind is None:
        raise InputError(f"{data!r} is not an event; its type must be one of {', '.join(_TYPES)}")
    # Thousands of waits have the same strings, so interning saves memory.
    interned: dict[str, Any] = {
        name: sys.intern(value) if type(value) is str else value for name, value in data.items()
    }
    known = {item.name for item in fields(kind)}
    try:
        return kind(**{name: value for name, value in interned.items() if name in known})
    except TypeError as error:
        raise InputError(f"{data!r} is an incomplete event: {error}") from None


def _checked_match(match: Any) -> Match:
    if match is None or is_output(match):
        return match  # type: ignore[no-any-return]
    if isinstance(match, str):
        if not has_template(match):
            check_expression("match", match)
        return match
    if not isinstance(match, dict):
        raise InputError(
            f"match={match!r} must be a dict of expected values, or a JMESPath expression as a string"
        )
    _refuse_empty("match=", match)
    return plain_copy("match=", match, MAX_MATCH_DEPTH)  # type: ignore[no-any-return]


def _refuse_empty(argument: str, match: dict[Any, Any]) -> None:
    if not match:
        raise InputError(f"{argument} is an empty dict; leave the argument out to match every event")
    for key, value in match.items():
        if isinstance(value, dict):
            _refuse_empty(f"{argument}[{key!r}]", value)


def _check_text(argument: str, value: Any, pattern: re.Pattern[str], allowed: str) -> None:
    if is_known_later(value):
        return
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise InputError(f"{argument}={value!r} is not allowed; give {allowed}")


def _check_conn_id(argument: str, value: Any) -> None:
    if not is_output(value) and (not isinstance(value, str) or not value):
        raise InputError(f"{argument}={value!r} is not a connection id; give a non-empty string")


def _check_queue_url(value: Any) -> None:
    if is_known_later(value):
        return
    if isinstance(value, str) and value.startswith("arn:"):
        raise InputError(
            f"queue_url={value!r} is an ARN; give the queue's URL, which the AWS console shows next to it"
        )
    url = _split(value)
    if url is None or url.scheme not in ("http", "https") or not url.hostname or not url.path.strip("/"):
        raise InputError(
            f"queue_url={value!r} is not a queue's URL; "
            "give it as https://sqs.eu-west-1.amazonaws.com/123456789012/payments"
        )
    if url.username or url.password:
        raise InputError(
            "queue_url= has a user or password; put credentials into the connection aws_conn_id="
        )


def _split(value: Any) -> Any:
    try:
        return urlsplit(value) if isinstance(value, str) else None
    except ValueError:
        return None
