"""What a task waits for: one event of a channel, a Kafka topic or an SQS queue. Data, and nothing that runs.

A specification cannot change. So an operator keeps :func:`specification_to_json` of it in its template field: Airflow
renders dicts by making new ones, on a worker as in a triggerer, but an object with ``template_fields`` by assigning
to it, which would change the specification for every task that shares it.
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
"""Equality on (nested) keys, a JMESPath expression, or None: every event."""

MAX_MATCH_DEPTH: Final = 20
"""How many levels a ``match`` dict may have: it is copied, sent to the triggerer and compared by recursion."""

# A channel's name is a part of its URL.
_CHANNEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Kafka's own rule: org.apache.kafka.common.internals.Topic.
_TOPIC: Final = re.compile(r"(?!\.{1,2}$)[a-zA-Z0-9._-]{1,249}")


@dataclass(frozen=True, slots=True)
class ChannelEvent:
    """An event that an outside system posts to a channel of the endpoint.

    :param name: the channel's name, as ``deferrable-ops channels add NAME`` was told: letters, digits, ``.``, ``_``
        and ``-``, at most 128.
    :param match: which of the channel's events: a dict of values that must be equal, nested as the payload is, or a
        JMESPath expression that must be true; None takes every one. At its top are the payload's own keys and
        ``headers``, ``attributes`` (of a CloudEvent), ``metadata`` and ``payload`` (the whole of it, also when it is
        text); where both have a name it means the event's, except for ``payload``. May hold templates.
    :raises InputError: an argument is wrong; the message names it and the fix.
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
        """What the inbox calls the channel; meaningful once templates are rendered."""
        return f"channel:{self.name}"


@dataclass(frozen=True, slots=True)
class KafkaEvent:
    """A record of a Kafka topic.

    :param topic: the topic's name.
    :param match: which of its records, as for :class:`ChannelEvent`; at its top are the payload's own keys and
        ``headers``, ``key``, ``metadata`` (topic, partition, offset, timestamp) and ``payload``.
    :param kafka_conn_id: an Airflow connection of the type Kafka.
    :raises InputError: an argument is wrong; the message names it and the fix.
    """

    topic: str
    match: Match = field(default=None, kw_only=True)
    kafka_conn_id: str = field(default="kafka_default", kw_only=True)

    def __post_init__(self) -> None:
        """Check the arguments."""
        _check_text("topic", self.topic, _TOPIC, "a topic's name: letters, digits, '.', '_' and '-'")
        _check_conn_id("kafka_conn_id", self.kafka_conn_id)
        object.__setattr__(self, "match", _checked_match(self.match))

    @property
    def source(self) -> str:
        """What the inbox calls the topic; meaningful once templates are rendered."""
        return f"kafka:{self.kafka_conn_id}/{self.topic}"


@dataclass(frozen=True, slots=True)
class SqsEvent:
    """A message of an SQS queue, which is read by this library alone.

    :param queue_url: the queue's URL.
    :param dedicated: must be True, and says that nothing else reads the queue: each message is written to the inbox
        and then deleted, so that any number of waits may match it.
    :param match: which of its messages, as for :class:`ChannelEvent`; at its top are the payload's own keys and
        ``attributes`` (the message attributes), ``metadata`` (MessageId, SentTimestamp, SenderId ...) and ``payload``.
    :param aws_conn_id: an Airflow connection of the type Amazon Web Services; None: the machine's own credentials.
    :raises InputError: an argument is wrong; the message names it and the fix.
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
                "dedicated=True is missing: messages are deleted from the queue once they are in the inbox, so the "
                "queue must be this library's alone. Where others read the messages too, publish them to an SNS "
                "topic and subscribe a queue for each reader (fan-out), one of them for this library, with raw "
                "message delivery; then give that queue's URL and dedicated=True"
            )
        if self.aws_conn_id is not None:
            _check_conn_id("aws_conn_id", self.aws_conn_id)
        object.__setattr__(self, "match", _checked_match(self.match))

    @property
    def source(self) -> str:
        """What the inbox calls the queue; meaningful once templates are rendered.

        By its ARN, which AWS' URLs tell: a queue has several of them, but it gives each message to one reader only. So
        nobody need ask SQS before looking into the inbox. Other servers' queues go by their URL.
        """
        known_later = is_known_later(self.queue_url)
        return f"sqs:{self.queue_url}" if known_later else queue_of(self.queue_url).source


Specification = ChannelEvent | KafkaEvent | SqsEvent

_TYPES: Final[dict[str, type[ChannelEvent | KafkaEvent | SqsEvent]]] = {
    "channel": ChannelEvent,
    "kafka": KafkaEvent,
    "sqs": SqsEvent,
}


def specification_to_json(specification: Specification) -> dict[str, Any]:
    """Return a specification as the JSON object in which it travels, templates and other tasks' outputs included.

    :raises InputError: it is none.
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
        f"{specification!r} is not an event; give a ChannelEvent, a KafkaEvent or an SqsEvent of deferrable_ops.events"
    )


def specification_from_json(data: Any) -> Specification:
    """Return the specification that :func:`specification_to_json` wrote, now that its templates are rendered.

    What this version does not know was written by another one and is dropped.

    :raises InputError: it is none, or a rendered argument is wrong.
    """
    kind = _TYPES.get(str(data.get("type"))) if isinstance(data, Mapping) else None
    if kind is None:
        raise InputError(
            f"{data!r} does not say which event it is; its type must be one of {', '.join(_TYPES)}"
        )
    # Thousands of waits say the same: it is kept once.
    once: dict[str, Any] = {
        name: sys.intern(value) if type(value) is str else value for name, value in data.items()
    }
    known = {item.name for item in fields(kind)}
    try:
        return kind(**{name: value for name, value in once.items() if name in known})
    except TypeError as error:
        raise InputError(f"{data!r} is not a whole event: {error}") from None


def _checked_match(match: Any) -> Match:
    if match is None or is_output(match):
        return match  # type: ignore[no-any-return]
    if isinstance(match, str):
        if not has_template(match):
            check_expression("match", match)
        return match
    if not isinstance(match, dict):
        raise InputError(
            f"match={match!r} must be a dict of values to be equal, or a JMESPath expression in a string"
        )
    _refuse_empty("match=", match)
    return plain_copy("match=", match, MAX_MATCH_DEPTH)  # type: ignore[no-any-return]


def _refuse_empty(argument: str, match: dict[Any, Any]) -> None:
    if not match:
        raise InputError(f"{argument} is an empty dict, which says nothing; leave it out to take everything")
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
        raise InputError(f"{argument}={value!r} is not the id of an Airflow connection; give a string")


def _check_queue_url(value: Any) -> None:
    if is_known_later(value):
        return
    if isinstance(value, str) and value.startswith("arn:"):
        raise InputError(
            f"queue_url={value!r} is an ARN; give the queue's URL, which the console shows next to it"
        )
    url = _split(value)
    if url is None or url.scheme not in ("http", "https") or not url.hostname or not url.path.strip("/"):
        raise InputError(
            f"queue_url={value!r} is not a queue's URL; "
            "give it as https://sqs.eu-west-1.amazonaws.com/123456789012/payments"
        )
    if url.username or url.password:
        raise InputError(
            "queue_url= holds a user or password; keep them in the connection that aws_conn_id= names"
        )


def _split(value: Any) -> Any:
    try:
        return urlsplit(value) if isinstance(value, str) else None
    except ValueError:
        return None
