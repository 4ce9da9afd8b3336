"""An event as it arrived, whatever source it came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from deferrable_ops.events.payloads import decode_payload, decode_text

_LAST_SECOND: Final = 253_402_300_799.0  # of the year 9999, beyond which Python has no dates


@dataclass(frozen=True, slots=True)
class Event:
    """One message from a channel, a Kafka topic or an SQS queue.

    :param source: which of them, as a specification's ``source`` says it.
    :param dedupe_key: what this message is within its source, the same whenever the source delivers it again.
    :param time: seconds since the epoch: the record's timestamp (Kafka), SentTimestamp (SQS), when the database
        received it (channels).
    :param payload: a JSON value, or the text of what is no JSON.
    :param attributes: what came with the payload, by the names under which it can be matched: ``headers``, ``key``,
        ``attributes``, ``metadata``. A source has always the same of them.
    """

    source: str
    dedupe_key: str
    time: float
    payload: Any
    attributes: dict[str, Any]

    def fields(self) -> dict[str, Any]:
        """Return what a match sees: the payload's own keys, ``payload``, and over them the attributes.

        So that what a sender writes into a payload cannot pass for, say, the sender that SQS reports.
        """
        own = self.payload if isinstance(self.payload, dict) else {}
        return {"payload": self.payload, **own, **self.attributes}

    def as_result(self) -> dict[str, Any]:
        """Return what the result of a wait says of this event: payload, when, where from."""
        return {
            "payload": self.payload,
            "time": datetime.fromtimestamp(self.time, UTC).isoformat(),
            "source": self.source,
            "attributes": self.attributes,
        }

    def without_payload(self, size: int) -> Event:
        """Return what is kept of an event that is too large: everything else, and how large it was in bytes."""
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
    """Return a Kafka record as an event. A tombstone's payload is None.

    :param timestamp: milliseconds since the epoch; records without one (Kafka says -1) take `received_at`.
    :param headers: where a name comes twice, the last one counts, as in Kafka's ``lastHeader``.
    """
    seconds = -1.0 if timestamp is None else timestamp / 1000
    # With its timestamp: a topic that is deleted and made again counts its offsets from 0.
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
    """Return a message as SQS' ``ReceiveMessage`` gives it as an event.

    :param message: an element of its ``Messages``, asked for with all attributes.
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
