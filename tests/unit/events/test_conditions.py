from __future__ import annotations

from collections.abc import Callable
from itertools import chain, combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deferrable_ops.events.condition_language import check_names, parse_condition
from deferrable_ops.events.conditions import describe, holds, missing, names_in
from deferrable_ops.exceptions import InputError

NAMES = ("a", "b", "c", "d")
SUBSETS = [set(come) for come in chain.from_iterable(combinations(NAMES, n) for n in range(len(NAMES) + 1))]

Truth = Callable[[set[str]], bool]


def all_of(terms: list[tuple[str, Truth]]) -> tuple[str, Truth]:
    return " & ".join(text for text, _ in terms), lambda come: all(truth(come) for _, truth in terms)


def any_of(terms: list[tuple[str, Truth]]) -> tuple[str, Truth]:
    return " | ".join(text for text, _ in terms), lambda come: any(truth(come) for _, truth in terms)


def within(term: tuple[str, Truth]) -> tuple[str, Truth]:
    return f"( {term[0]})", term[1]


def some_of(drawn: tuple[int, list[tuple[str, Truth]]]) -> tuple[str, Truth]:
    terms = list({text: (text, truth) for text, truth in drawn[1]}.values())
    count = min(drawn[0], len(terms))
    texts = ",".join(text for text, _ in terms)
    return f"at_least({count},{texts})", lambda come: sum(truth(come) for _, truth in terms) >= count


def name(text: str) -> tuple[str, Truth]:
    return text, lambda come: text in come


# Generates the text of a condition together with its meaning.
terms = st.recursive(
    st.sampled_from(NAMES).map(name),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(all_of).map(within)
        | st.lists(inner, min_size=1, max_size=3).map(any_of).map(within)
        | st.tuples(st.integers(1, 3), st.lists(st.sampled_from(NAMES).map(name), min_size=1)).map(some_of)
    ),
    max_leaves=8,
)
conditions = st.lists(st.lists(terms, min_size=1, max_size=3).map(all_of), min_size=1, max_size=3).map(any_of)


@given(conditions)
def test_a_condition_equals_its_truth_table(drawn: tuple[str, Truth]) -> None:
    text, truth = drawn
    condition = parse_condition(text, NAMES)
    for come in SUBSETS:
        assert holds(condition, come) is truth(come)


@given(conditions)
def test_a_true_condition_stays_true(drawn: tuple[str, Truth]) -> None:
    condition = parse_condition(drawn[0], NAMES)
    assert holds(condition, set(NAMES))
    assert not holds(condition, set())
    for come in SUBSETS:
        for more in NAMES:
            assert holds(condition, come) <= holds(condition, come | {more})


@given(conditions)
def test_receiving_the_missing_events_makes_a_condition_true(drawn: tuple[str, Truth]) -> None:
    condition = parse_condition(drawn[0], NAMES)
    for come in SUBSETS:
        left = missing(condition, come)
        if left is None:
            assert holds(condition, come)
            continue
        assert not names_in(left) & come
        for more in SUBSETS:
            assert holds(condition, come | more) is holds(left, more - come)


@given(
    st.text() | st.lists(st.sampled_from([*"abz&|(),2 ", "at_least", "not", "-"]), max_size=12).map("".join)
)
def test_any_text_is_parsed_or_refused_with_a_reason(text: str) -> None:
    try:
        condition = parse_condition(text, NAMES)
    except InputError:
        pass
    else:
        assert names_in(condition) <= set(NAMES)


def test_by_default_all_events_are_needed() -> None:
    condition = parse_condition(None, ["a", "b"])
    assert not holds(condition, {"a"})
    assert holds(condition, {"a", "b"})
    assert holds(parse_condition(None, ["a"]), {"a"})


def test_and_binds_more_tightly_than_or() -> None:
    condition = parse_condition("a | b & c", NAMES)
    assert holds(condition, {"a"})
    assert not holds(condition, {"b"})


@pytest.mark.parametrize(
    ("text", "come", "words"),
    [
        ("a & (b | c)", set(), "a and (b or c)"),
        ("a & (b | c)", {"a"}, "b or c"),
        ("a & (b | c)", {"c"}, "a"),
        ("at_least(2, a, b, c)", set(), "2 of a, b, c"),
        ("at_least(2, a, b, c)", {"b"}, "a or c"),
        ("at_least(3, a, b & c, d)", {"b"}, "a and c and d"),
        ("a & b", {"a", "b"}, "nothing"),
    ],
)
def test_missing_events_are_described_in_words(text: str, come: set[str], words: str) -> None:
    assert describe(missing(parse_condition(text, NAMES), come)) == words


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a & not b", "must stay true when more events arrive"),
        ("!a", "must stay true when more events arrive"),
        ("a & ~b", "must stay true when more events arrive"),
        ("a - b", "must stay true when more events arrive"),
        ("a ^ b", "must stay true when more events arrive"),
        ("a != b", "must stay true when more events arrive"),
        ("a and b", "write & instead of 'and'"),
        ("a or b", "write | instead of 'or'"),
        ("a && b", "write & instead of '&&'"),
        ("a || b", "write | instead of '||'"),
        ("a == 1", "put comparisons into match="),
        ("{{ params.condition }}", "cannot be a template"),
        ("a & sing", "events= has no name 'sing'; did you mean sign?"),
        ("", "at the end: expected the name of an event"),
        ("a &", "at the end: expected the name of an event"),
        ("a b", "at 'b', character 3: expected & or |"),
        ("(a", r"at the end: expected '\)'"),
        ("a)", "expected & or |"),
        ("2", "expected the name of an event"),
        ("at_least(a, b)", "must be a number"),
        ("at_least(0, a)", "write 1 or more"),
        ("at_least(3, a, b)", "can never be true"),
        ("at_least(1)", "can never be true"),
        ("at_least(1, a, a)", "remove one of them"),
        ("at_least", r"write at_least\(k"),
        ("at_least(1, a; b)", r"expected ',' or '\)'"),
        ("at_least(99999999999999999999, a)", "must be a number"),
        ("__import__('os')", "events= has no name '__import__'"),
        ("(" * 10_000, "more than 50 nested levels"),
        ("at_least(1, " * 10_000, "more than 50 nested levels"),
    ],
)
def test_invalid_condition_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse_condition(text, [*NAMES, "sign"])


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "events= is empty"),
        (["and"], "choose another"),
        (["at_least"], "choose another"),
        (["a b"], "has the invalid name 'a b'"),
        (["2a"], "has the invalid name '2a'"),
        ([5], "has the invalid name 5"),
    ],
)
def test_invalid_event_name_is_refused(names: list[Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        check_names(names)


def test_a_condition_must_be_text() -> None:
    with pytest.raises(InputError, match="must be a string"):
        parse_condition(["a"], NAMES)  # type: ignore[arg-type]


def test_any_number_of_parentheses_is_allowed_side_by_side() -> None:
    assert holds(parse_condition(" & ".join(["(a)", "at_least(1, b)"] * 200), NAMES), {"a", "b"})


def test_names_may_have_dots_and_dashes() -> None:
    assert names_in(parse_condition("eu-orders & v1.payments", ["eu-orders", "v1.payments"])) == {
        "eu-orders",
        "v1.payments",
    }
