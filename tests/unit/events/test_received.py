from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.events.support import event

from deferrable_ops.events.condition_language import parse_condition
from deferrable_ops.events.event import Event
from deferrable_ops.events.received import MOST_KEPT, ReceivedEvents
from deferrable_ops.exceptions import InputError

NAMES = ["a", "b", "c"]
Arrival = tuple[int, Event, set[str]]

texts = st.sampled_from(["a", "a & b", "a | b", "a & (b | c)", "at_least(2, a, b, c)", "a & b & c"])
keeps = st.sampled_from(["first", "last", "all"])


@st.composite
def arrivals(draw: st.DrawFn) -> list[Arrival]:
    """Events in commit order, with gaps for the events of other waits."""
    orders = sorted(draw(st.sets(st.integers(1, 60), max_size=15)))
    names = st.sets(st.sampled_from([*NAMES, "of another wait"]), max_size=3)
    return [(order, event({"number": order}, time=float(order)), draw(names)) for order in orders]


def fold(received: ReceivedEvents, of: list[Arrival]) -> ReceivedEvents:
    for order, arrived, names in of:
        received.add(order, arrived, names)
    return received


def sent(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state))  # type: ignore[no-any-return]


@given(texts, keeps, arrivals(), st.lists(st.integers(0, 15), max_size=4), st.integers(0, 3))
def test_resuming_from_a_state_equals_one_fold(
    text: str, keep: Literal["first", "last", "all"], of: list[Arrival], cuts: list[int], again: int
) -> None:
    condition = parse_condition(text, NAMES)
    at_once = fold(ReceivedEvents(condition, NAMES, keep), of)

    state = None
    start = 0
    for end in [*sorted(cuts), len(of)]:
        # After a restart, some events are delivered again.
        received = fold(ReceivedEvents(condition, NAMES, keep, state), of[max(0, start - again) : end])
        state, start = sent(received.state()), end

    assert state == sent(at_once.state())
    resumed = ReceivedEvents(condition, NAMES, keep, state)
    assert resumed.result() == at_once.result()
    assert resumed.complete == at_once.complete
    assert resumed.missing() == at_once.missing()


@given(texts, keeps, arrivals())
def test_the_first_event_that_makes_the_condition_true_fixes_the_outcome(
    text: str, keep: Literal["first", "last", "all"], of: list[Arrival]
) -> None:
    truths = {
        "a": lambda come: "a" in come,
        "a & b": lambda come: {"a", "b"} <= come,
        "a | b": lambda come: bool({"a", "b"} & come),
        "a & (b | c)": lambda come: "a" in come and bool({"b", "c"} & come),
        "at_least(2, a, b, c)": lambda come: len(come & {"a", "b", "c"}) >= 2,
        "a & b & c": lambda come: {"a", "b", "c"} <= come,
    }
    seen: list[Arrival] = []
    come: set[str] = set()
    for arrival in of:
        if truths[text](come):
            break
        seen.append(arrival)
        come |= arrival[2] & set(NAMES)

    received = fold(ReceivedEvents(parse_condition(text, NAMES), NAMES, keep), of)

    assert received.complete is truths[text](come)
    numbers = {name: [order for order, _, names in seen if name in names] for name in NAMES}
    expected: dict[str, Any] = {
        "first": {name: next(iter(found), None) for name, found in numbers.items()},
        "last": {name: next(reversed(found), None) for name, found in numbers.items()},
        "all": numbers,
    }[keep]
    assert {name: number_of(found) for name, found in received.result().items()} == expected


def number_of(found: Any) -> Any:
    if isinstance(found, list):
        return [number_of(one) for one in found]
    return None if found is None else found["payload"]["number"]


def test_the_result_has_payload_time_source_and_attributes() -> None:
    received = ReceivedEvents(parse_condition("a | b", ["a", "b"]), ["a", "b"])
    assert received.add(1, event({"rows": 7}, source="kafka:k/t", time=0.5, key="eu"), {"a"}) is True
    assert received.result() == {
        "a": {
            "payload": {"rows": 7},
            "time": "1970-01-01T00:00:00.500000+00:00",
            "source": "kafka:k/t",
            "attributes": {"key": "eu"},
        },
        "b": None,
    }


def test_progress_names_received_and_missing_events() -> None:
    received = ReceivedEvents(parse_condition("a & (b | c)", NAMES), NAMES)
    assert received.progress() == {"come": {}, "missing": "a and (b or c)"}
    assert received.why_incomplete() == "missing: a and (b or c); received: nothing"
    received.add(1, event(), {"a"})
    received.add(2, event(), {"a"})
    assert received.progress() == {"come": {"a": 2}, "missing": "b or c"}
    assert received.why_incomplete() == "missing: b or c; received: a"


def test_at_most_a_thousand_events_of_a_name_are_kept() -> None:
    received = ReceivedEvents(parse_condition(None, ["a", "b"]), ["a", "b"], "all")
    for order in range(1, MOST_KEPT + 11):
        received.add(order, event(order), {"a"})
    received.add(MOST_KEPT + 11, event("last"), {"b"})
    result = received.result()
    assert [found["payload"] for found in result["a"]] == list(range(1, MOST_KEPT + 1))
    assert [found["payload"] for found in result["b"]] == ["last"]
    assert received.progress()["come"] == {"a": MOST_KEPT + 10, "b": 1}


def test_modifying_a_returned_result_does_not_change_the_state() -> None:
    received = ReceivedEvents(parse_condition("a", ["a"]), ["a"], "all")
    received.add(1, event(1), {"a"})
    received.result()["a"].clear()
    received.state()["kept"]["a"].clear()
    assert len(received.result()["a"]) == 1


def test_invalid_arguments_are_refused() -> None:
    condition = parse_condition("a & b", ["a", "b"])
    with pytest.raises(InputError, match="keep='newest' is invalid"):
        ReceivedEvents(condition, ["a", "b"], "newest")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="names that are missing in events="):
        ReceivedEvents(condition, ["a"])
