"""JMESPath expressions: evaluation, and the texts that they require."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.events.support import json_values

from deferrable_ops.expressions import is_true, text_equalities


@pytest.mark.parametrize(
    ("expression", "equalities"),
    [
        ("status == 'done'", [(("status",), "done")]),
        ("'done' == status", [(("status",), "done")]),
        ("run.\"the id\" == '7' && amount > `0`", [(("run", "the id"), "7")]),
        ("(a == 'x' && b.c.d == `\"y\"`) && e", [(("a",), "x"), (("b", "c", "d"), "y")]),
        ("a == 'x' && a == 'y'", [(("a",), "x"), (("a",), "y")]),
        ("a == 'x' || b", []),
        ("a != 'x'", []),
        ("!(a == 'x')", []),
        ("a == `1` && b == `true` && c == `null`", []),
        ("a == b", []),
        ("'x' == 'x'", []),
        ("a[0] == 'x'", []),
        ("a[0].b == 'x' && (a || b).c == 'x' && a.*.b == 'x' && a[*].b == 'x'", []),
        ("a | b == 'x'", []),
        ("a.b.length(c) == 'x' && @ == 'x'", []),
        ("not JMESPath", []),
        ("(" * 5000, []),
    ],
)
def test_texts_that_must_hold_where_an_expression_is_true(
    expression: str, equalities: list[tuple[tuple[str, ...], str]]
) -> None:
    assert text_equalities(expression) == equalities


@given(
    left=st.sampled_from(["a == 'x'", "b.a == 'x'", "'' == a", 'a == `"x"`']),
    operator=st.sampled_from(["&&", "||", "|"]),
    right=st.sampled_from(["b", "a == 'y'", "!b", "b.a == 'x'"]),
    value=st.dictionaries(
        st.sampled_from(["a", "b"]), st.sampled_from(["", "x", "y", 1, {"a": "x"}]) | json_values, max_size=2
    ),
)
def test_a_true_expression_implies_its_texts(
    left: str, operator: str, right: str, value: dict[str, object]
) -> None:
    expression = f"{left} {operator} {right}"
    if is_true(expression, value):
        for path, text in text_equalities(expression):
            assert is_true(f"{'.'.join(path)} == '{text}'", value)


def test_an_expression_that_cannot_be_evaluated_is_not_true() -> None:
    assert not is_true("length(a) > `0`", {"a": 5})
    assert not is_true("not JMESPath", {})
