"""What a task publishes: payloads, alone or with what a Kafka record or an SQS message carries beside them.

A message cannot change. An operator keeps :func:`messages_to_json` of what it was given in its template field, as it
keeps specifications.
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
"""The Kafka header, or SQS message attribute, that tells a message from all others, also when it comes twice."""

_KIND: Final = "__message__"  # tells a message from a payload that is a dict
_LONGEST_DELAY: Final = 900
_MOST_ATTRIBUTES: Final = 9  # SQS allows ten, and one is the id


@dataclass(frozen=True, slots=True)
class KafkaMessage:
    """A Kafka record that is to be published.

    :param payload: a JSON value, which is sent as JSON; a text is sent as it is. None is a tombstone and needs a `key`.
    :param key: the record's key; records of one key come into one partition.
    :param headers: the record's headers, by name.
    :param partition: the number of the partition; by default the key says it, or else Kafka's client does.
    :raises InputError: an argument is wrong; the message names it and the fix.
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
        _check_whole_number("partition", self.partition, 2**31 - 1, "the number of a partition")
        if self.payload is None and self.key is None:
            raise InputError("payload=None is a tombstone, which deletes a key; give its key=, or a payload")


@dataclass(frozen=True, slots=True)
class SqsMessage:
    """An SQS message that is to be published.

    :param payload: a JSON value, which is sent as JSON; a text is sent as it is.
    :param attributes: message attributes, by name: texts and numbers, at most 9.
    :param group_id: the message group, in whose order a FIFO queue delivers; by default one for the task.
    :param deduplication_id: what tells repetitions in a FIFO queue; by default it is made from the task's attempt.
    :param delay: seconds until the message can be received, or a timedelta; at most 15 minutes. Not in FIFO queues,
        which have a delay of their own.
    :raises InputError: an argument is wrong; the message names it and the fix.
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
        _check_whole_number("delay", self.delay, _LONGEST_DELAY, "seconds, or a timedelta")
        if self.payload is None:
            raise InputError("payload= is missing: an SQS message has a text")


M = TypeVar("M", KafkaMessage, SqsMessage)
_KINDS: Final[dict[str, type[Any]]] = {"kafka": KafkaMessage, "sqs": SqsMessage}


def messages_to_json(messages: Any) -> Any:
    """Return messages as the plain data in which they travel, templates and other tasks' outputs included.

    :raises InputError: they are no list, or one of them is wrong.
    """
    if is_known_later(messages):
        return messages
    if not isinstance(messages, (list, tuple)):
        raise InputError(
            f"messages= is a {type(messages).__name__}; give a list, or payload= for one message"
        )
    if not messages:
        raise InputError("messages= is empty; leave the task out where there is nothing to publish")
    return [_to_json(f"messages[{index}]", message) for index, message in enumerate(messages)]


def messages_from_json(data: Any, kind: type[M], argument: str = "messages", **defaults: Any) -> list[M]:
    """Return the messages that :func:`messages_to_json` wrote, now that their templates are rendered.

    :param data: payloads, and messages of the kind; a text is the JSON of a list, which a template has become.
    :param defaults: what messages carry that do not say it themselves.
    :raises InputError: it is no list, or one of them is wrong; the message says which.
    """
    return [
        _read(f"{argument}[{index}]", one, kind, defaults) for index, one in enumerate(listed(data, argument))
    ]


def payloads_from_json(data: Any, argument: str = "messages") -> list[Any]:
    """Return payloads that carry nothing beside them.

    :raises InputError: there is no list, or one of them is a KafkaMessage or an SqsMessage.
    """
    found = listed(data, argument)
    for index, one in enumerate(found):
        if _kind_of(one) is not None:
            raise InputError(
                f"{argument}[{index}] is a message of another system; a channel's events are payloads"
            )
    return found


def listed(data: Any, argument: str) -> list[Any]:
    """Return a list that may have become text, because it came out of a template.

    :raises InputError: it is none.
    """
    if isinstance(data, str):
        try:
            data = json.loads(data)
        except ValueError:
            raise InputError(
                f"{argument}= became a text that is not JSON; write the template as {{{{ ... | tojson }}}}"
            ) from None
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise InputError(f"{argument}= became a {type(data).__name__}, and must be a list")
    return list(data)


def encode_payload(argument: str, payload: Any) -> bytes:
    """Return the bytes of a payload: a text's own, or JSON.

    :raises InputError: it is neither.
    """
    try:
        if isinstance(payload, str):
            return payload.encode()
        return json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:
        raise InputError(f"{argument} holds half a surrogate pair, which is no text") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{argument} is no JSON value: {error}") from None


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
        raise InputError(f"{argument} is a {own.__name__}; here a {kind.__name__} or a plain payload belongs")
    known = {item.name for item in fields(kind)} if own else ()
    given = {name: data[name] for name in known if name in data} if own else {"payload": data}
    try:
        return kind(**{"payload": None, **defaults, **given})
    except InputError as error:
        raise InputError(f"{argument}: {error}") from None


def _check_text(argument: str, value: Any) -> None:
    if value is not None and not is_output(value) and (not isinstance(value, str) or not value):
        raise InputError(f"{argument}={value!r} must be a text that is not empty")


def _check_whole_number(argument: str, value: Any, most: int, meaning: str) -> None:
    if value is None or is_known_later(value):
        return
    try:
        number = -1.0 if isinstance(value, bool) else float(value)  # a template has become text
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= most or number != int(number):
        raise InputError(f"{argument}={value!r} is not allowed; give {meaning}, from 0 to {most}")


def _texts(argument: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise InputError(f"{argument}={values!r} must be a dict of names and texts")
    found = {}
    for name, value in values.items():
        _check_name(argument, name)
        if not is_output(value) and not isinstance(value, str):
            raise InputError(f"{argument}[{name!r}]={value!r} must be a text")
        found[name] = value
    return found


def _attributes(values: Any) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise InputError(f"attributes={values!r} must be a dict of names, and texts or numbers")
    _check_count(values)
    found = {}
    for name, value in values.items():
        _check_name("attributes", name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_output(value) and not is_number and (not isinstance(value, str) or not value):
            raise InputError(f"attributes[{name!r}]={value!r} must be a number, or a text that is not empty")
        found[name] = value
    return found


def _check_count(values: Iterable[str]) -> None:
    if len(list(values)) > _MOST_ATTRIBUTES:
        raise InputError(
            f"attributes= has more than {_MOST_ATTRIBUTES}: SQS allows 10, and one of them tells the message"
        )


def _check_name(argument: str, name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise InputError(f"{argument}= has the name {name!r}; names are texts that are not empty")
    if name == MESSAGE_ID:
        raise InputError(f"{argument}= has the name {MESSAGE_ID}, which every message gets from this library")
