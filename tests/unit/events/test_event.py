from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from unit.events.support import event

from deferrable_ops.events.event import Event, kafka_event, sqs_event


def record(**changed: Any) -> Event:
    of_kafka: dict[str, Any] = {
        "topic": "orders",
        "partition": 3,
        "offset": 41,
        "timestamp": 1_700_000_000_123,
        "key": b"eu",
        "value": b'{"rows": 7}',
        "headers": [("type", b"one"), ("type", b"two"), ("empty", None)],
        "received_at": 5.0,
    }
    return kafka_event("kafka:kafka_default/orders", **(of_kafka | changed))


def message(**changed: Any) -> Event:
    of_sqs: dict[str, Any] = {
        "MessageId": "m-1",
        "Body": '{"rows": 7}',
        "Attributes": {"SentTimestamp": "1700000000123", "SenderId": "AIDA"},
        "MessageAttributes": {
            "kind": {"DataType": "String", "StringValue": "final"},
            "raw": {"DataType": "Binary", "BinaryValue": b"\xff"},
        },
    }
    return sqs_event("sqs:q", of_sqs | changed, received_at=5.0)


def test_a_record_keeps_what_can_be_matched() -> None:
    assert record() == Event(
        source="kafka:kafka_default/orders",
        dedupe_key="3/41/1700000000123",
        time=1_700_000_000.123,
        payload={"rows": 7},
        attributes={
            "headers": {"type": "two", "empty": None},
            "key": "eu",
            "metadata": {"topic": "orders", "partition": 3, "offset": 41, "timestamp": 1_700_000_000_123},
        },
    )


def test_a_tombstone_has_no_payload() -> None:
    assert record(value=None).payload is None
    assert record(key=None).attributes["key"] is None


@given(timestamp=st.none() | st.integers(), key=st.none() | st.binary(), value=st.none() | st.binary())
def test_converting_a_record_never_raises(
    timestamp: int | None, key: bytes | None, value: bytes | None
) -> None:
    found = record(timestamp=timestamp, key=key, value=value, headers=[("a\x00\ud800", value)])
    json.dumps(found.as_result(), ensure_ascii=False).encode()


def test_a_record_without_a_valid_timestamp_has_the_time_of_receipt() -> None:
    assert record(timestamp=-1).time == 5.0
    assert record(timestamp=None).time == 5.0
    assert record(timestamp=2**62).time == 5.0


def test_a_recreated_topic_has_other_dedupe_keys() -> None:
    assert record().dedupe_key != record(timestamp=1_800_000_000_000).dedupe_key


def test_a_message_keeps_what_can_be_matched() -> None:
    assert message() == Event(
        source="sqs:q",
        dedupe_key="m-1",
        time=1_700_000_000.123,
        payload={"rows": 7},
        attributes={
            "attributes": {"kind": "final", "raw": "\\xff"},
            "metadata": {"MessageId": "m-1", "SentTimestamp": "1700000000123", "SenderId": "AIDA"},
        },
    )


def test_a_message_with_only_an_id_is_accepted() -> None:
    bare = sqs_event("sqs:q", {"MessageId": "m-1"}, received_at=5.0)
    assert (bare.time, bare.payload, bare.attributes["attributes"]) == (5.0, "", {})
    assert message(Attributes={"SentTimestamp": "soon"}).time == 5.0


def test_a_payload_cannot_forge_the_fields_of_its_source() -> None:
    forged = message(Body='{"metadata": {"SenderId": "root"}, "rows": 1}')
    assert forged.fields()["metadata"]["SenderId"] == "AIDA"
    assert forged.fields()["rows"] == 1
    assert forged.fields()["payload"]["metadata"] == {"SenderId": "root"}


def test_a_payloads_own_key_payload_stays_reachable() -> None:
    # Debezium sends such payloads.
    assert event({"payload": {"op": "c"}}).fields()["payload"] == {"op": "c"}
    assert event("text").fields() == {"payload": "text"}


def test_a_too_large_event_is_stored_without_its_payload() -> None:
    kept = message().without_payload(2_000_000)
    assert kept.payload is None
    assert kept.attributes["metadata"]["dropped_payload_bytes"] == 2_000_000
    assert kept.attributes["metadata"]["MessageId"] == kept.dedupe_key == "m-1"
