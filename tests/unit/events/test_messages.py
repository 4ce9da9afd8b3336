"""Messages to publish: plain payloads, Kafka records and SQS messages."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from deferrable_ops.events import KafkaMessage, SqsMessage
from deferrable_ops.events.messages import (
    encode_payload,
    messages_from_json,
    messages_to_json,
    payloads_from_json,
)
from deferrable_ops.exceptions import InputError


def test_kafka_messages_survive_serialization() -> None:
    messages = [
        {"key": "a payload's own"},
        KafkaMessage([1], key="k", headers={"a": "b"}, partition=2),
        KafkaMessage(None, key="gone"),
        None,
    ]
    found = messages_from_json(messages_to_json(messages), KafkaMessage, key="common")
    assert found == [
        KafkaMessage({"key": "a payload's own"}, key="common"),
        messages[1],
        messages[2],
        KafkaMessage(None, key="common"),
    ]


def test_sqs_messages_survive_serialization() -> None:
    messages = [
        "text",
        SqsMessage(1, attributes={"n": 1.5}, group_id="g", deduplication_id="d", delay=timedelta(minutes=1)),
    ]
    found = messages_from_json(messages_to_json(messages), SqsMessage, group_id="all")
    assert found == [SqsMessage("text", group_id="all"), messages[1]]
    assert found[1].delay == 60


def test_template_rendered_to_json_text_is_a_list() -> None:
    assert payloads_from_json('[{"a": 1}, "b"]') == [{"a": 1}, "b"]
    with pytest.raises(InputError, match="tojson"):
        payloads_from_json("['a']")
    with pytest.raises(InputError, match="rendered to a dict"):
        payloads_from_json('{"a": 1}')


@pytest.mark.parametrize(
    "payload, encoded",
    [("ä", "ä".encode()), ({"b": [1, "ü"]}, '{"b":[1,"ü"]}'.encode()), (None, b"null"), (1.5, b"1.5")],
)
def test_text_is_sent_unchanged_and_other_values_as_json(payload: Any, encoded: bytes) -> None:
    assert encode_payload("payload=", payload) == encoded


@pytest.mark.parametrize("payload", ["\ud800", ["\ud800"], float("nan"), {"a": object()}])
def test_value_that_is_neither_text_nor_json_is_refused(payload: Any) -> None:
    with pytest.raises(InputError, match=r"^messages\[3\] "):
        encode_payload("messages[3]", payload)


@pytest.mark.parametrize(
    "kind, arguments, message",
    [
        (KafkaMessage, {"payload": None}, "a tombstone needs a key"),
        (KafkaMessage, {"payload": object()}, "payload= is a object"),
        (KafkaMessage, {"payload": 1, "key": ""}, "key='' must be a non-empty string"),
        (KafkaMessage, {"payload": 1, "key": 7}, "key=7 must be a non-empty string"),
        (KafkaMessage, {"payload": 1, "headers": {"a": 1}}, "headers['a']=1 must be a string"),
        (
            KafkaMessage,
            {"payload": 1, "headers": {"deferrable-ops-id": "x"}},
            "is reserved for the message id",
        ),
        (KafkaMessage, {"payload": 1, "partition": -1}, "partition=-1 is not allowed"),
        (KafkaMessage, {"payload": 1, "partition": 1.5}, "partition=1.5 is not allowed"),
        (KafkaMessage, {"payload": 1, "partition": True}, "partition=True is not allowed"),
        (SqsMessage, {"payload": None}, "payload= is missing"),
        (SqsMessage, {"payload": 1, "delay": 901}, "delay=901 is not allowed"),
        (SqsMessage, {"payload": 1, "delay": timedelta(seconds=0.5)}, "delay=0.5 is not allowed"),
        (SqsMessage, {"payload": 1, "attributes": {"a": ""}}, "attributes['a']='' must be"),
        (SqsMessage, {"payload": 1, "attributes": {"a": True}}, "attributes['a']=True must be"),
        (SqsMessage, {"payload": 1, "attributes": dict.fromkeys("abcdefghij", 1)}, "more than 9"),
        (SqsMessage, {"payload": 1, "group_id": 1}, "group_id=1 must be a non-empty string"),
    ],
)
def test_bad_argument_is_named(kind: type[Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        kind(**arguments)
    assert message in str(caught.value)


def test_invalid_rendered_message_is_named() -> None:
    data = messages_to_json(["fine", SqsMessage("x", delay="{{ params.delay }}")])
    data[1]["delay"] = "soon"
    with pytest.raises(InputError, match=r"^messages\[1\]: delay='soon'"):
        messages_from_json(data, SqsMessage)


def test_messages_of_another_system_are_refused() -> None:
    data = messages_to_json([SqsMessage(1)])
    with pytest.raises(InputError, match=r"messages\[0\] is a SqsMessage"):
        messages_from_json(data, KafkaMessage)
    with pytest.raises(InputError, match="a channel accepts only plain payloads"):
        payloads_from_json(data)


@pytest.mark.parametrize("messages, said", [([], "is empty"), ("x", "is a str"), ({"a": 1}, "is a dict")])
def test_messages_are_a_list(messages: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        messages_to_json(messages)
