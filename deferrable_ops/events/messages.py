"""The messages that a task publishes: plain payloads, Kafka records or SQS messages.

Messages are immutable, and several tasks may share a message. An operator's template field stores the result of
:func:`messages_to_json`, so that rendering a template does not change a shared message (see ``specifications.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Any, Final, TypeVar

from deferrable_ops.exceptions import InputError
from deferrable_ops.plain_data import is_known_later, is_output, plain_copy

MESSAGE_ID: Final = "deferrable-ops-id"
"""The Kafka header or SQS message attribute that identifies a message, so that consumers can drop repetitions."""

# This key distinguishes a serialized message from a payload that is a dict.
_KIND: Final = "__message__"
_MAX_DELAY_SECONDS: Final = 900
# SQS allows 10 attributes. One of them is the message id.
_MAX_ATTRIBUTES: Final = 9


@dataclass(frozen=True, slots=True)
class KafkaMessage:
    """A Kafka record to publish.

    :param payload: the content of the message: a JSON value. A payload that is a string is sent unchanged. Any other
        payload is encoded as JSON. If the payload is None, the record is a tombstone, and `key` is required.
    :param key: the record's key; records with the same key go to the same partition.
    :param headers: the values of the record's headers, by header name.
    :param partition: the number of the partition to which the record is sent. By default, the key determines the
        partition. All records of a task that have no key go to one partition.
    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
    """

    payload: Any
    key: str | None = field(default=None, kw_only=True)
    headers: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    partition: int | str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the arguments."""
        object.__setattr__(self, "payload", plain_copy("payload=", self.payload))
        _check_text("key", self.key)
        object.__setattr__(self, "headers", _texts("headers", self.headers))
        _check_whole_number("partition", self.partition, 2**31 - 1, "a partition number")
        if self.payload is None and self.key is None:
            raise InputError(
                "payload=None makes the Kafka record a tombstone, and a tombstone needs a key; give key= or a payload"
            )


@dataclass(frozen=True, slots=True)
class SqsMessage:
    """An SQS message to publish.

    :param payload: the content of the message: a JSON value. A payload that is a string is sent unchanged. Any other
        payload is encoded as JSON.
    :param attributes: the values of the SQS message attributes, by attribute name. A message has at most 9 attributes,
        and each is a string or a number.
    :param group_id: the id of the message group to which the message belongs, for a FIFO queue. A FIFO queue keeps the
        order of messages within a group. By default, all messages of the task are in one group.
    :param deduplication_id: a FIFO queue drops a message that has the same deduplication id as a message from the last
        5 minutes. By default, the deduplication id consists of the id of the task's attempt and the number of the
        message.
    :param delay: for how long SQS hides a sent message from all readers of the queue, in seconds or as a timedelta; at
        most 15 minutes. FIFO queues do not support a delay of single messages, only a delay of the whole queue.
    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
    """

    payload: Any
    attributes: Mapping[str, str | float] = field(default_factory=dict, kw_only=True)
    group_id: str | None = field(default=None, kw_only=True)
    deduplication_id: str | None = field(default=None, kw_only=True)
    delay: timedelta | float | str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the arguments."""
        object.__setattr__(self, "payload", plain_copy("payload=", self.payload))
        object.__setattr__(self, "attributes", _attributes(self.attributes))
        _check_text("group_id", self.group_id)
        _check_text("deduplication_id", self.deduplication_id)
        if isinstance(self.delay, timedelta):
            object.__setattr__(self, "delay", self.delay.total_seconds())
        _check_whole_number("delay", self.delay, _MAX_DELAY_SECONDS, "seconds or a timedelta")
        if self.payload is None:
            raise InputError("payload= is missing; give the payload of the SQS message")


M = TypeVar("M", KafkaMessage, SqsMessage)
_KINDS: Final[dict[str, type[Any]]] = {"kafka": KafkaMessage, "sqs": SqsMessage}


def messages_to_json(messages: Any) -> Any:
    """Convert messages into plain data, for serialization.

    Templates and references to other tasks' outputs are not changed.

    :raises InputError: if the messages are not a list, the list is empty, or a message is wrong.
    """
    if is_known_later(messages):
        return messages
    if not isinstance(messages, (list, tuple)):
        raise InputError(
            f"messages= is a {type(messages).__name__}; give a list, or payload= for one message"
        )
    if not messages:
        raise InputError("messages= is empty; give at least one message, or remove the task")
    return [_to_json(f"messages[{index}]", message) for index, message in enumerate(messages)]


def messages_from_json(data: Any, kind: type[M], argument: str = "messages", **defaults: Any) -> list[M]:
    """Convert the result of :func:`messages_to_json` back into messages.

    The templates in `data` must already be rendered.

    :param data: a list of payloads and messages of `kind`. A rendered template may also be a string that contains such
        a list as JSON.
    :param defaults: the values, by field name, of the fields that a message does not set.
    :raises InputError: if `data` is not a list, or if an element is invalid. The error message shows which element is
        wrong.
    """
    return [
        _read(f"{argument}[{index}]", one, kind, defaults)
        for index, one in enumerate(_as_list(data, argument))
    ]


def payloads_from_json(data: Any, argument: str = "messages") -> list[Any]:
    """Return the plain payloads to publish to a channel.

    :raises InputError: if `data` is not a list, or if an element is a KafkaMessage or an SqsMessage.
    """
    found = _as_list(data, argument)
    for index, one in enumerate(found):
        if _kind_of(one) is not None:
            raise InputError(
                f"{argument}[{index}] is a KafkaMessage or an SqsMessage; give its payload instead, because a channel "
                "accepts only plain payloads"
            )
    return found


def _as_list(data: Any, argument: str) -> list[Any]:
    """Return `data` as a list. Parse `data` as JSON if it is a string, because a rendered template is a string.

    :raises InputError: if the result is not a list.
    """
    if isinstance(data, str):
        try:
            data = json.loads(data)
        except ValueError:
            raise InputError(
                f"{argument}= rendered to a string that is not JSON; write the template as {{{{ ... | tojson }}}}"
            ) from None
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise InputError(f"{argument}= rendered to a {type(data).__name__}; the template must give a list")
    return list(data)


def encode_payload(argument: str, payload: Any) -> bytes:
    """Encode a payload: a string as UTF-8, any other value as JSON.

    :raises InputError: if the payload cannot be encoded.
    """
    try:
        if isinstance(payload, str):
            return payload.encode()
        return json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{argument} has a character that UTF-8 cannot encode (a surrogate); remove this character"
        ) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{argument} is not a JSON value: {error}; convert it, for example with str()"
        ) from None


def _to_json(argument: str, message: Any) -> Any:
    for name, kind in _KINDS.items():
        if type(message) is kind:
            values = {item.name: getattr(message, item.name) for item in fields(kind)}
            return {_KIND: name} | {key: value for key, value in values.items() if value not in (None, {})}
    return plain_copy(argument, message)


def _kind_of(data: Any) -> type[Any] | None:
    return _KINDS.get(str(data[_KIND])) if isinstance(data, Mapping) and _KIND in data else None


def _read(argument: str, data: Any, kind: type[M], defaults: Mapping[str, Any]) -> M:
    own = _kind_of(data)
    if own is not None and own is not kind:
        raise InputError(
            f"{argument} is a {own.__name__}; this destination needs a {kind.__name__} or a plain payload"
        )
    known = {item.name for item in fields(kind)} if own else ()
    given = {name: data[name] for name in known if name in data} if own else {"payload": data}
    try:
        return kind(**{"payload": None, **defaults, **given})
    except InputError as error:
        raise InputError(f"{argument}: {error}") from None


def _check_text(argument: str, value: Any) -> None:
    if value is not None and not is_output(value) and (not isinstance(value, str) or not value):
        raise InputError(f"{argument}={value!r} must be a non-empty string")


def _check_whole_number(argument: str, value: Any, most: int, meaning: str) -> None:
    if value is None or is_known_later(value):
        return
    try:
        # A template is rendered to a string.
        number = -1.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= most or number != int(number):
        raise InputError(f"{argument}={value!r} is not allowed; give {meaning}, from 0 to {most}")


def _texts(argument: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise InputError(f"{argument}={values!r} must be a dict of strings")
    found = {}
    for name, value in values.items():
        _check_name(argument, name)
        if not is_output(value) and not isinstance(value, str):
            raise InputError(f"{argument}[{name!r}]={value!r} must be a string")
        found[name] = value
    return found


def _attributes(values: Any) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise InputError(f"attributes={values!r} must be a dict whose values are strings or numbers")
    _check_count(values)
    found = {}
    for name, value in values.items():
        _check_name("attributes", name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_output(value) and not is_number and (not isinstance(value, str) or not value):
            raise InputError(f"attributes[{name!r}]={value!r} must be a number or a non-empty string")
        found[name] = value
    return found


def _check_count(values: Iterable[str]) -> None:
    if len(list(values)) > _MAX_ATTRIBUTES:
        raise InputError(
            f"attributes= has more than {_MAX_ATTRIBUTES} entries; remove some. SQS allows 10 attributes, and the "
            f"library adds {MESSAGE_ID}"
        )


def _check_name(argument: str, name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise InputError(f"{argument}= has the name {name!r}; a name must be a non-empty string")
    if name == MESSAGE_ID:
        raise InputError(
            f"{argument}= has the name {MESSAGE_ID}, which is reserved for the message id; choose another name"
        )
