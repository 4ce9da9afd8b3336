from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from unit.events.support import event

from deferrable_ops.events.match_index import MatchIndex

# Few keys and values, so that matches share paths, and events fulfil them.
keys = st.sampled_from(["a", "b", "payload", "headers"])
leaves = st.sampled_from([None, True, False, 0, 1, 1.0, "x", "1", [], [1], [True], [{"a": 1}]])
wanted = st.recursive(
    st.dictionaries(keys, leaves, min_size=1, max_size=3),
    lambda children: st.dictionaries(keys, children | leaves, min_size=1, max_size=3),
    max_leaves=6,
)
expressions = st.sampled_from(
    [
        "a == 'x'",
        "b",
        "length(a) > `0`",
        "headers.a == `1`",
        "b && 'x' == headers.a",
        "a == 'x' || b",
        "(payload.a == 'x' && b == 'x') && a",
        "a == 'x' && a == '1'",
    ]
)
matches = st.none() | expressions | wanted
payloads = st.recursive(
    leaves | st.dictionaries(keys, leaves, max_size=3),
    lambda children: st.dictionaries(keys, children, max_size=4),
    max_leaves=8,
)
headers = st.dictionaries(keys, leaves, max_size=2)


def met(match: Any, fields: Mapping[str, Any]) -> bool:
    """Return whether an event fulfils a match, without the code under test."""
    if match is None:
        return True
    if isinstance(match, str):
        a, b = fields.get("a"), fields.get("b")
        of_headers, payload = fields["headers"].get("a"), fields.get("payload")
        of_payload = payload.get("a") if isinstance(payload, dict) else None
        b_is_true = _true(b)
        return {
            "a == 'x'": a == "x",
            "b": b_is_true,
            "length(a) > `0`": isinstance(a, (str, list, dict)) and len(a) > 0,
            "headers.a == `1`": _one(of_headers),
            "b && 'x' == headers.a": b_is_true and of_headers == "x",
            "a == 'x' || b": a == "x" or b_is_true,
            "(payload.a == 'x' && b == 'x') && a": of_payload == "x" and b == "x" and _true(a),
            "a == 'x' && a == '1'": False,
        }[match]
    return all(key in fields and _value_met(value, fields[key]) for key, value in match.items())


def _true(value: Any) -> bool:
    return value not in (None, "", []) and value is not False and value != {}


def _one(value: Any) -> bool:
    return value == 1 and not isinstance(value, bool)


def _value_met(value: Any, found: Any) -> bool:
    if isinstance(value, dict):
        return isinstance(found, dict) and met(value, found)
    # Types distinguish values that are equal in Python: True and 1, [True] and [1].
    return value == found and str(value).replace("1.0", "1") == str(found).replace("1.0", "1")


class AnyChanges(RuleBasedStateMachine):
    """After additions and removals, an index finds the same as a scan of all matches, also if keys have several."""

    def __init__(self) -> None:
        super().__init__()
        self.index: MatchIndex[int] = MatchIndex()
        self.all: list[tuple[int, Any]] = []

    @rule(key=st.integers(0, 12), match=matches)
    def add(self, key: int, match: Any) -> None:
        self.index.add(key, match)
        self.all.append((key, match))

    @rule(key=st.integers(0, 12))
    def discard_all_of_a_key(self, key: int) -> None:
        for of_key, match in self.all:
            if of_key == key:
                self.index.discard(key, match)
        self.all = [one for one in self.all if one[0] != key]

    @rule(key=st.integers(13, 20), match=matches)
    def discard_what_is_not_there(self, key: int, match: Any) -> None:
        self.index.discard(key, match)

    @rule(payload=payloads, of_headers=headers)
    def find(self, payload: Any, of_headers: dict[str, Any]) -> None:
        arrived = event(payload, headers=of_headers)
        fields = arrived.fields()
        assert self.index.find(arrived) == {key for key, match in self.all if met(match, fields)}

    @invariant()
    def keeps_nothing_of_what_was_removed(self) -> None:
        assert bool(self.index) == bool(self.all)
        if not self.all:
            assert not self.index._tree
            assert not self.index._by_expression
            assert not self.index._expressions.fields
            assert not self.index._expressions.keys


TestAnyChanges = AnyChanges.TestCase
TestAnyChanges.settings = settings(max_examples=50)


@given(st.lists(matches, max_size=30), payloads, headers)
def test_an_index_finds_what_a_scan_finds(
    all_matches: list[Any], payload: Any, of_headers: dict[str, Any]
) -> None:
    index: MatchIndex[int] = MatchIndex()
    for key, match in enumerate(all_matches):
        index.add(key, match)
    arrived = event(payload, headers=of_headers)
    assert index.find(arrived) == {
        key for key, match in enumerate(all_matches) if met(match, arrived.fields())
    }


def test_a_thousand_equalities_cost_a_message_at_most_twice_what_ten_do() -> None:
    shapes = [
        lambda number: {"table": f"t{number}"},
        lambda number: {"db": f"db{number % 30}", "table": f"t{number}", "ds": "2026-01-01"},
        lambda number: {"db": "db0", "meta": {"run": number}},
        lambda number: {f"only_{number}": 1},
        lambda number: f"table == 't{number}' && ds == '2026-01-01'",
    ]
    for shape in shapes:
        few, many = (_index_of([shape(number) for number in range(count)]) for count in (10, 1000))
        messages = [
            event(
                {"db": f"db{n % 30}", "table": f"t{n}", "ds": "2026-01-01", "meta": {"run": n}, "only_3": n}
            )
            for n in random.Random(1).choices(range(10), k=200)
        ]
        # The machine may be busy for a moment.
        for _ in range(5):
            if _seconds(many, messages) <= 2 * _seconds(few, messages):
                break
        else:
            raise AssertionError(f"a thousand matches like {shape(1)} cost more than twice what ten do")


def test_an_expression_is_evaluated_once_for_all_matches_that_use_it() -> None:
    index: MatchIndex[int] = MatchIndex()
    for key in range(1000):
        index.add(key, "a == 'x'")
    assert len(index._by_expression) == 1
    assert index.find(event({"a": "x"})) == set(range(1000))


def _index_of(all_matches: list[Any]) -> MatchIndex[int]:
    index: MatchIndex[int] = MatchIndex()
    for key, match in enumerate(all_matches):
        index.add(key, match)
    return index


def _seconds(index: MatchIndex[int], messages: list[Any]) -> float:
    best = float("inf")
    for _ in range(7):
        started = time.perf_counter()
        for message in messages:
            index.find(message)
        best = min(best, time.perf_counter() - started)
    return best
