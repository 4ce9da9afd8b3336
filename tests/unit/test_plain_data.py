"""Plain data: how deep it may be nested, and which limit an error names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deferrable_ops.events import ChannelEvent, KafkaMessage, SqsMessage
from deferrable_ops.events.payloads import decode_payload
from deferrable_ops.events.specifications import MAX_MATCH_DEPTH
from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.events import PublishEventOperator
from deferrable_ops.plain_data import MAX_PAYLOAD_DEPTH, is_nested_deeper, plain_copy


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def make_match(value: Any) -> Any:
    return ChannelEvent("a", match=value).match


def make_kafka_message(value: Any) -> Any:
    return KafkaMessage(value).payload


def make_sqs_message(value: Any) -> Any:
    return SqsMessage(value).payload


def make_operator(value: Any) -> Any:
    return PublishEventOperator(task_id="a", channel="a", payload=value).payload


MAKERS = [
    pytest.param(make_match, "match=", MAX_MATCH_DEPTH, id="match"),
    pytest.param(make_kafka_message, "payload=", MAX_PAYLOAD_DEPTH, id="kafka-message"),
    pytest.param(make_sqs_message, "payload=", MAX_PAYLOAD_DEPTH, id="sqs-message"),
    pytest.param(make_operator, "payload=", MAX_PAYLOAD_DEPTH, id="publish"),
]


@pytest.mark.parametrize(("make", "argument", "limit"), MAKERS)
def test_data_as_deep_as_the_limit_is_accepted(make: Any, argument: str, limit: int) -> None:
    assert make(nested(limit)) == nested(limit)


@pytest.mark.parametrize(("make", "argument", "limit"), MAKERS)
def test_an_error_names_the_argument_and_the_limit_that_is_enforced(
    make: Any, argument: str, limit: int
) -> None:
    for levels in (limit + 1, 150):
        with pytest.raises(InputError) as refused:
            make(nested(levels))
        assert str(refused.value) == f"{argument} is nested deeper than {limit} levels; give fewer levels"


@pytest.mark.parametrize("limit", [1, 20, 100])
def test_every_check_of_depth_draws_the_same_line(limit: int) -> None:
    for levels, is_deeper in ((limit, False), (limit + 1, True)):
        value = nested(levels)
        assert is_nested_deeper(value, limit) is is_deeper
        assert _is_refused(value, limit) is is_deeper


def test_a_message_deeper_than_the_limit_stays_text() -> None:
    for levels, kind in ((MAX_PAYLOAD_DEPTH, dict), (MAX_PAYLOAD_DEPTH + 1, str)):
        assert isinstance(decode_payload(json.dumps(nested(levels)).encode()), kind)


def _is_refused(value: Any, limit: int) -> bool:
    try:
        plain_copy("payload=", value, limit)
    except InputError:
        return True
    return False
