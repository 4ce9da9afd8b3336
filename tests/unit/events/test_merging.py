"""Rules merge groups of messages."""

from __future__ import annotations

from typing import Any

import pytest

from deferrable_ops.events import Merge
from deferrable_ops.events.merging import merge, rules_from_json, rules_to_json
from deferrable_ops.exceptions import InputError

LOADS: list[Any] = [
    {"db": "sales", "table": "orders", "part": "a", "rows": 2, "at": "2026-11-21T10:00", "options": {"x": 1}},
    {"db": "sales", "table": "payments", "part": "a", "rows": 5},
    "a text",
    {
        "db": "sales",
        "table": "orders",
        "part": "b",
        "rows": 3.5,
        "at": "2026-11-21T09:00",
        "options": {"y": 2},
    },
    {"db": "stock", "table": "orders", "part": "c", "rows": 1},
]


def test_messages_of_a_group_become_one_and_the_rest_is_counted() -> None:
    combine = {"part": "join:+", "rows": "sum", "at": "max", "options": "update", "absent": "sum"}
    rules = [Merge({"db": "sales", "table": "orders"}, combine=combine)]
    merged, left_over = merge(LOADS, rules)
    assert merged == [
        {
            "db": "sales",
            "table": "orders",
            "part": "a+b",
            "rows": 5.5,
            "at": "2026-11-21T10:00",
            "options": {"x": 1, "y": 2},
        }
    ]
    assert left_over == 3
    assert LOADS[0]["part"] == "a", "a message was changed"


def test_messages_are_grouped_by_fields_in_order_of_arrival() -> None:
    merged, left_over = merge(LOADS, [Merge(group_by=["table"], combine={"rows": "list"})])
    assert [(one["table"], one["rows"]) for one in merged] == [("orders", [2, 3.5, 1]), ("payments", [5])]
    assert left_over == 1


def test_first_matching_rule_applies() -> None:
    rules = [Merge("rows > `4`", combine={"db": "list"}), Merge(group_by=["db"], combine={"rows": "sum"})]
    merged, _ = merge(LOADS, rules)
    assert [one["rows"] for one in merged] == [5.5, 5, 1]
    assert merged[1]["db"] == ["sales"]


def test_groups_use_the_equality_of_json() -> None:
    payloads: list[Any] = [{"k": 1}, {"k": True}, {"k": 1.0}, {"k": "1"}, {"k": [1]}, {}, {"k": None}]
    merged, _ = merge(payloads, [Merge(group_by=["k"], combine={"k": "list"})])
    assert [one.get("k") for one in merged] == [[1, 1.0], [True], ["1"], [[1]], [None]]


@pytest.mark.parametrize(
    "how, values, combined",
    [
        ("first", [3, 1, 2], 3),
        ("last", [3, 1, 2], 2),
        ("sum", [3, 1, 2], 6),
        ("min", [3, 1, 2], 1),
        ("max", ["a", "c", "b"], "c"),
        ("list", [[1], 2], [[1], 2]),
        ("distinct", [2, {"a": 1}, 1, 2, True, {"a": 1}], [2, {"a": 1}, 1, True]),
        ("join", ["a", "b"], "a,b"),
        ("join:", ["a", "b"], "a,b"),
        ("join: : ", ["a", "b"], "a : b"),
        ("update", [{"a": 1, "b": 1}, {"b": 2}], {"a": 1, "b": 2}),
    ],
)
def test_values_are_combined(how: str, values: list[Any], combined: Any) -> None:
    merged, _ = merge([{"v": value} for value in values], [Merge(combine={"v": how})])
    assert merged == [{"v": combined}]
    assert type(merged[0]["v"]) is type(combined)


@pytest.mark.parametrize(
    "how, values",
    [
        ("sum", [1, "2"]),
        ("sum", [1, True]),
        ("max", [1, "2"]),
        ("min", ["a", None]),
        ("join", ["a", 1]),
        ("update", [{"a": 1}, [1]]),
    ],
)
def test_values_that_cannot_be_combined_are_shown(how: str, values: list[Any]) -> None:
    with pytest.raises(InputError, match=f"cannot combine the field 'v' by '{how}'"):
        merge([{"v": value} for value in values], [Merge(combine={"v": how})])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"combine": {"v": "average"}}, "combine['v']='average' is unknown"),
        ({"combine": {"v": 1}}, "combine['v']=1 is unknown"),
        ({"combine": ["v"]}, "must be a dict"),
        ({"group_by": "table"}, "group_by='table' must be a list"),
        ({"group_by": [1]}, "which is not a field name"),
        ({"match": "rows >"}, "is not JMESPath"),
        ({"match": {}}, "match= is an empty dict"),
    ],
)
def test_bad_rule_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Merge(**arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize("rules", [[], {}, [{"match": None}], "rule"])
def test_invalid_rule_is_refused(rules: Any) -> None:
    with pytest.raises(InputError, match="merge= must be a Merge"):
        rules_to_json(rules)


def test_rules_are_serialized_as_plain_data() -> None:
    rule = Merge({"db": "{{ params.db }}"}, group_by=["table"], combine={"part": "{{ params.how }}"})
    data = rules_to_json(rule)
    assert data == [
        {
            "match": {"db": "{{ params.db }}"},
            "group_by": ["table"],
            "combine": {"part": "{{ params.how }}"},
        }
    ]
    assert rules_from_json(data) == [rule]
    with pytest.raises(InputError, match="is unknown"):
        rules_from_json([{**data[0], "combine": {"part": "rendered"}}])
    assert rules_from_json([{"match": "a", "of_a_later_version": 1}]) == [Merge("a")]
