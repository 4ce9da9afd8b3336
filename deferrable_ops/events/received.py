"""Collects the events that one wait receives, in the inbox's commit order.

When the condition becomes true, the result is final: later events do not change the result. A restart does not change
the result: resuming from a stored state gives the same result as reading all events again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal

from deferrable_ops.events.condition_language import check_names
from deferrable_ops.events.conditions import Condition, describe, holds, missing, names_in
from deferrable_ops.events.event import Event
from deferrable_ops.exceptions import InputError

Keep = Literal["first", "last", "all"]

MOST_KEPT: Final = 1_000
"""``keep="all"`` keeps at most this many events for each name, the earliest ones. Later events are only counted."""

# To save memory, all waits share this dict until their first event. It is never modified.
_EMPTY: Final[Mapping[str, Any]] = {"order": 0, "complete": False, "counts": {}, "kept": {}}


def check_keep(keep: Any) -> None:
    """Check the argument ``keep`` of an operator.

    :raises InputError: if `keep` is not "first", "last" or "all".
    """
    if keep not in ("first", "last", "all"):
        raise InputError(f"keep={keep!r} is invalid; give 'first', 'last' or 'all'")


class ReceivedEvents:
    """The events that one wait has received, and whether its condition is true.

    :param condition: the wait ends when this condition is true.
    :param names: the event names of the wait. Events are also kept for names that the condition does not use.
    :param keep: which events to return for each name: "first", "last" (the last event before the wait ended), or "all"
        (at most 1,000 events).
    :param state: the state to resume from, as returned by :meth:`state`; None for a wait that has received no events
        yet.
    :raises InputError: if an argument is wrong.
    """

    __slots__ = ("_complete", "_condition", "_counts", "_keep", "_kept", "_names", "_order")

    def __init__(
        self,
        condition: Condition,
        names: Sequence[str],
        keep: Keep = "first",
        state: Mapping[str, Any] | None = None,
    ) -> None:
        check_names(names)
        check_keep(keep)
        if not names_in(condition) <= set(names):
            raise InputError(
                "condition= uses names that are missing in events=; add these events, or correct the names"
            )
        state = state or _EMPTY
        self._condition = condition
        self._names = tuple(names)
        self._keep = keep
        self._order: int = state["order"]
        self._complete: bool = state["complete"]
        self._counts: Mapping[str, int] = state["counts"]
        self._kept: Mapping[str, Sequence[dict[str, Any]]] = state["kept"]

    @property
    def complete(self) -> bool:
        """True once the condition has become true. The result does not change after the condition has become true."""
        return self._complete

    @property
    def names(self) -> tuple[str, ...]:
        """The event names of the wait."""
        return self._names

    @property
    def order(self) -> int:
        """The position of the last added event in the commit order; 0 if no event has been added."""
        return self._order

    def add(self, order: int | None, event: Event, names: Collection[str]) -> bool:
        """Add the next event, and return whether the condition is true now.

        An event that has already been added is ignored. After the condition has become true, all events are ignored.

        :param order: the event's position in the inbox's commit order, above 0. If `order` is None, the event is new
            and comes after all events that have been added.
        :param names: the names of the specifications that the event matches; names that this wait does not use are
            ignored.
        """
        if self._complete:
            return True
        if order is not None:
            if order <= self._order:
                return False
            self._order = order
        for name in self._names:
            if name in names:
                self._add_as(name, event)
        self._complete = holds(self._condition, self._counts)
        return self._complete

    def result(self) -> dict[str, Any]:
        """Return a dict that contains for each name its event: payload, time, source, attributes.

        For a name without events, the dict contains None. With ``keep="all"``, the dict contains for each name a list
        of events in commit order.
        """
        if self._keep == "all":
            return {name: list(self._kept.get(name, ())) for name in self._names}
        return {name: next(iter(self._kept.get(name, ())), None) for name in self._names}

    def progress(self) -> dict[str, Any]:
        """Return the progress as a dict.

        ``come`` contains the number of received events by name. ``missing`` is a description of the missing events.
        """
        return {"come": {name: self._counts[name] for name in self._received()}, "missing": self.missing()}

    def missing(self) -> str:
        """Describe which events must still be received, for example ``payments or signoff``."""
        return describe(missing(self._condition, self._counts))

    def why_incomplete(self) -> str:
        """Describe which events are missing and which were received, for the error message of a timeout."""
        return f"missing: {self.missing()}; received: {', '.join(self._received()) or 'nothing'}"

    def state(self) -> dict[str, Any]:
        """Return the state as a JSON object. To resume, pass this object to the constructor."""
        return {
            "order": self._order,
            "complete": self._complete,
            "counts": dict(self._counts),
            "kept": {name: list(kept) for name, kept in self._kept.items()},
        }

    def _add_as(self, name: str, event: Event) -> None:
        self._counts = {**self._counts, name: self._counts.get(name, 0) + 1}
        kept = self._kept.get(name, ())
        if self._keep == "last":
            self._kept = {**self._kept, name: [event.as_result()]}
        elif len(kept) < (MOST_KEPT if self._keep == "all" else 1):
            self._kept = {**self._kept, name: [*kept, event.as_result()]}

    def _received(self) -> list[str]:
        return [name for name in self._names if name in self._counts]
