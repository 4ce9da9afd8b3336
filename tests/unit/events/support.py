"""Events and JSON values for the tests of deferrable_ops.events."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from deferrable_ops.events.event import Event
from deferrable_ops.events.matching import matches_fields
from deferrable_ops.events.specifications import Match

SOURCE = "channel:tests"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


def event(payload: Any = None, *, source: str = SOURCE, time: float = 1_000.0, **attributes: Any) -> Event:
    return Event(source, dedupe_key="1", time=time, payload=payload, attributes=attributes)


def matches(match: Match, event: Event) -> bool:
    return matches_fields(match, event.fields())
