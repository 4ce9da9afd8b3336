"""The class for events. Events from channels, Kafka topics and SQS queues have the same fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from deferrable_ops.events.payloads import decode_payload, decode_text

# The end of the year 9999, the latest date in Python.
_LAST_SECOND: Final = 253_402_300_799.0


@dataclass(frozen=True, slots=True)
class Event:
    """One message from a channel, a Kafka topic or an SQS queue.

    :param source: identifies the channel, topic or queue. An event and a specification for the same source have the
        same value of ``source``.
    :param dedupe_key: identifies the message within its source. If the source delivers the message again, the key is
        the same.
    :param time: the event's time in seconds since the epoch: the record's timestamp (Kafka), SentTimestamp (SQS) or
        the time at which the database received the message (channels).
    :param payload: a JSON value, or a string if the message is not JSON.
    :param attributes: a dict of all parts of the message other than the payload. The keys of this dict are
        ``headers``, ``key``, ``attributes`` or ``metadata``: names that a specification's ``match`` can use. The
        attributes of all events of a source have the same keys.
    """

    source: str
    dedupe_key: str
    time: float
    payload: Any
    attributes: dict[str, Any]

    def fields(self) -> dict[str, Any]:
        """Return the fields that a ``match`` can use: the payload's keys, ``payload`` and the attributes.

        If a payload key and an attribute have the same name, the attribute is returned. So a payload cannot forge an
        attribute, for example the sender that SQS reports.
        """
        own = self.payload if isinstance(self.payload, dict) else {}
        return {"payload": self.payload, **own, **self.attributes}

    def as_result(self) -> dict[str, Any]:
        """Return the event as it appears in the result of a wait: payload, time, source, attributes."""
        return {
            "payload": self.payload,
            "time": datetime.fromtimestamp(self.time, UTC).isoformat(),
            "source": self.source,
            "attributes": self.attributes,
        }

    def without_payload(self, size: int) -> Event:
        """Return the event without its payload, for an event whose payload is too large.

        :param size: the size of the payload in bytes, which is stored in the metadata of the returned event.
        """
        metadata = {**self.attributes.get("metadata", {}), "dropped_payload_bytes": size}
        return replace(self, payload=None, attributes={**self.attributes, "metadata": metadata})


def kafka_event(
    source: str,
    *,
    topic: str,
    partition: int,
    offset: int,
    timestamp: int | None,
    key: bytes | None,
    value: bytes | None,
    headers: Iterable[tuple[str, bytes | None]],
    received_at: float,
) -> Event:
    """Convert a Kafka record into an event. The payload of a tombstone (a record without a value) is None.

    :param timestamp: the timestamp of the record, in milliseconds since the epoch. If the record has no timestamp (-1
        in Kafka), the event's time is `received_at`.
    :param headers: the headers of the record. If a header is repeated, its last value is used, as in Kafka's
        ``lastHeader``.
    """
    seconds = -1.0 if timestamp is None else timestamp / 1000
    # The dedupe key includes the timestamp. If a topic is deleted and recreated, its offsets start at 0 again, so an
    # offset alone does not identify a record.
    return Event(
        source,
        dedupe_key=f"{partition}/{offset}/{timestamp}",
        time=_time(seconds, received_at),
        payload=None if value is None else decode_payload(value),
        attributes={
            "headers": {
                _text(name.encode(errors="backslashreplace")): _text(header) for name, header in headers
            },
            "key": _text(key),
            "metadata": {"topic": topic, "partition": partition, "offset": offset, "timestamp": timestamp},
        },
    )


def sqs_event(source: str, message: Mapping[str, Any], *, received_at: float) -> Event:
    """Convert an SQS message into an event.

    :param message: an element of ``Messages`` in the response of ``ReceiveMessage``. The request of ``ReceiveMessage``
        must ask for all attributes.
    """
    system = dict(message.get("Attributes") or {})
    sent = str(system.get("SentTimestamp", ""))
    seconds = int(sent) / 1000 if sent.isdecimal() and len(sent) < 20 else -1.0
    attributes = message.get("MessageAttributes") or {}
    return Event(
        source,
        dedupe_key=str(message["MessageId"]),
        time=_time(seconds, received_at),
        payload=decode_payload(str(message.get("Body", "")).encode(errors="backslashreplace")),
        attributes={
            "attributes": {name: _attribute(value) for name, value in attributes.items()},
            "metadata": {"MessageId": message["MessageId"], **system},
        },
    )


def _attribute(value: Mapping[str, Any]) -> str | None:
    return _text(value["BinaryValue"]) if "BinaryValue" in value else value.get("StringValue")


def _text(value: bytes | None) -> str | None:
    return None if value is None else decode_text(value)


def _time(seconds: float, received_at: float) -> float:
    return seconds if 0 <= seconds <= _LAST_SECOND else received_at
