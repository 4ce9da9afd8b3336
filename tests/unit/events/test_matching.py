from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.events.support import event, json_values, matches

from deferrable_ops.events import ChannelEvent, KafkaEvent
from deferrable_ops.events.matching import comparable, matching_names

expressions = st.sampled_from(
    [
        "a",
        "@",
        "&a",
        "a > `1`",
        "a < 'x'",
        "length(a) > `0`",
        "max_by(payload, &a)",
        "sort_by(@, &a)",
        "join(',', payload)",
        "contains(payload, 'done')",
        "to_number(a) / `0`",
        "payload[?a > `1`]",
        "*.a",
        "headers.type == 'x'",
    ]
)


def same_json(one: Any, other: Any) -> bool:
    """Return whether two values are equal in JSON, without the code under test."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other if not _numbers(one, other) else one == other


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, (int, float)) for value in values)


@given(match=expressions | st.dictionaries(st.text(), json_values), payload=json_values, headers=json_values)
def test_matching_never_raises(match: Any, payload: Any, headers: Any) -> None:
    assert matches(match, event(payload, headers=headers)) in (True, False)


@given(one=json_values, other=json_values)
def test_comparable_values_are_equal_exactly_when_equal_in_json(one: Any, other: Any) -> None:
    assert (comparable(one) == comparable(other)) is same_json(one, other)
    assert hash(comparable(one)) == hash(comparable(one))


@given(st.data())
def test_comparable_small_values_are_equal_exactly_when_equal_in_json(data: st.DataObject) -> None:
    small = st.recursive(
        st.sampled_from([None, True, False, 0, 1, 0.0, 1.0, "", "1"]),
        lambda children: st.lists(children, max_size=2) | st.dictionaries(st.just("a"), children),
        max_leaves=3,
    )
    one, other = data.draw(small), data.draw(small)
    assert (comparable(one) == comparable(other)) is same_json(one, other)


def test_a_too_deeply_nested_payload_matches_nothing() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert not matches({"a": [1]}, event({"a": deep}))
    assert not matches("a[0][0] == `1`", event({"a": deep}))
    # Python cannot free it in one step.
    while deep:
        deep = deep.pop()


@pytest.mark.parametrize(
    ("match", "met"),
    [
        (None, True),
        ({"db": "db0"}, True),
        ({"db": "db0", "rows": 5}, True),
        ({"db": "db0", "rows": 5.0}, True),
        ({"db": "db0", "rows": "5"}, False),
        ({"db": "db1"}, False),
        ({"ok": True}, True),
        ({"ok": 1}, False),
        ({"none": None}, True),
        ({"absent": None}, False),
        ({"deep": {"tags": ["a", {"b": 1}]}}, True),
        ({"deep": {"tags": ["a"]}}, False),
        ({"deep": {"more": 1}}, True),
        ({"deep": {"tags": {"a": 1}}}, False),
        ({"db": {"name": "db0"}}, False),
        ({"headers": {"type": "final"}}, True),
        ({"key": "eu", "metadata": {"partition": 3}}, True),
        ({"payload": {"db": "db0"}}, True),
        ("db == 'db0' && rows > `4`", True),
        ("headers.type == 'final' && key == 'eu' && metadata.partition == `3`", True),
        ("payload.db == 'db0'", True),
        ("db > `4`", False),
        ("rows", True),
        ("absent", False),
    ],
)
def test_what_matches(match: Any, met: bool) -> None:
    payload = {
        "db": "db0",
        "rows": 5,
        "ok": True,
        "none": None,
        "deep": {"tags": ["a", {"b": 1}], "more": 1},
    }
    arrived = event(payload, headers={"type": "final"}, key="eu", metadata={"partition": 3})
    assert matches(match, arrived) is met


@pytest.mark.parametrize(
    ("match", "met"),
    [
        ({"payload": "job 7 is done"}, True),
        ("contains(payload, 'done')", True),
        ("starts_with(payload, 'job 8')", False),
        ({"db": "db0"}, False),
    ],
)
def test_text_can_be_matched(match: Any, met: bool) -> None:
    assert matches(match, event("job 7 is done")) is met


def test_one_event_may_satisfy_several_names_of_its_source() -> None:
    wanted = {
        "any": ChannelEvent("tests"),
        "final": ChannelEvent("tests", match="kind == 'final'"),
        "draft": ChannelEvent("tests", match={"kind": "draft"}),
        "elsewhere": ChannelEvent("other"),
        "kafka": KafkaEvent("tests"),
    }
    assert matching_names(wanted, event({"kind": "final"}), since=0) == ["any", "final"]


def test_events_from_before_since_do_not_count() -> None:
    wanted = {"any": ChannelEvent("tests")}
    assert matching_names(wanted, event(time=99.9), since=100) == []
    assert matching_names(wanted, event(time=100), since=100) == ["any"]
