"""What has come for one wait, and how it ends: a fold over events in the inbox's commit order.

The outcome is fixed by the first event that makes the condition true; events after it change nothing. A fold that
goes on from a stored state comes to what one fold over all events comes to, so a restart changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal

from deferrable_ops.events.condition_language import check_names
from deferrable_ops.events.conditions import Condition, holds, in_words, missing, names_in
from deferrable_ops.events.event import Event
from deferrable_ops.exceptions import InputError

Keep = Literal["first", "last", "all"]

MOST_KEPT: Final = 1_000
"""How many events ``keep="all"`` keeps for each name, the earliest; later ones are only counted."""

# One for all, because a wait holds nothing until something comes. It is never changed.
_NOTHING: Final[Mapping[str, Any]] = {"order": 0, "complete": False, "counts": {}, "kept": {}}


def check_keep(keep: Any) -> None:
    """Check which of several events of one name a user wants.

    :raises InputError: it is none of the three choices.
    """
    if keep not in ("first", "last", "all"):
        raise InputError(f"keep={keep!r} is not one of first, last, all")


class Gathering:
    """The events of one wait.

    :param condition: when the wait is over.
    :param names: the events that the wait is for; the condition may leave some out, whose events are still kept.
    :param keep: which event of a name the result has: the first, the last up to the one that ended the wait, or all
        of them, at most 1,000.
    :param state: what :meth:`state` returned, to go on from.
    :raises InputError: an argument is wrong.
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
            raise InputError("condition= speaks of events that events= does not have")
        state = state or _NOTHING
        self._condition = condition
        self._names = tuple(names)
        self._keep = keep
        self._order: int = state["order"]
        self._complete: bool = state["complete"]
        self._counts: Mapping[str, int] = state["counts"]
        self._kept: Mapping[str, Sequence[dict[str, Any]]] = state["kept"]

    @property
    def complete(self) -> bool:
        """Whether the condition has become true: the result stands."""
        return self._complete

    @property
    def names(self) -> tuple[str, ...]:
        """The events that the wait is for."""
        return self._names

    @property
    def order(self) -> int:
        """The commit order of the last event that was looked at; 0 before the first."""
        return self._order

    def take(self, order: int | None, event: Event, names: Collection[str]) -> bool:
        """Take the next event, and return whether the condition is true now.

        An event that was taken already, or comes after the one that ended the wait, changes nothing.

        :param order: the event's place in the inbox's commit order, above 0; None: it comes next, once.
        :param names: which of the wait's names it satisfies; others are ignored.
        """
        if self._complete:
            return True
        if order is not None:
            if order <= self._order:
                return False
            self._order = order
        for name in self._names:
            if name in names:
                self._take_as(name, event)
        self._complete = holds(self._condition, self._counts)
        return self._complete

    def result(self) -> dict[str, Any]:
        """Return what came for each name: payload, time, source, attributes.

        None for a name that nothing came for; with ``keep="all"`` a list for each name, in commit order.
        """
        if self._keep == "all":
            return {name: list(self._kept.get(name, ())) for name in self._names}
        return {name: next(iter(self._kept.get(name, ())), None) for name in self._names}

    def progress(self) -> dict[str, Any]:
        """Return what has come and what is missing, for a wait that goes on: counts by name, and words."""
        return {"come": {name: self._counts[name] for name in self._come()}, "missing": self.missing()}

    def missing(self) -> str:
        """Return in words which events must still come: ``payments or signoff``."""
        return in_words(missing(self._condition, self._counts))

    def why_incomplete(self) -> str:
        """Return what a timeout's reason says: what is missing, and what has come."""
        return f"missing: {self.missing()}; come: {', '.join(self._come()) or 'nothing'}"

    def state(self) -> dict[str, Any]:
        """Return the state as a JSON object, to go on from."""
        return {
            "order": self._order,
            "complete": self._complete,
            "counts": dict(self._counts),
            "kept": {name: list(kept) for name, kept in self._kept.items()},
        }

    def _take_as(self, name: str, event: Event) -> None:
        self._counts = {**self._counts, name: self._counts.get(name, 0) + 1}
        kept = self._kept.get(name, ())
        if self._keep == "last":
            self._kept = {**self._kept, name: [event.as_result()]}
        elif len(kept) < (MOST_KEPT if self._keep == "all" else 1):
            self._kept = {**self._kept, name: [*kept, event.as_result()]}

    def _come(self) -> list[str]:
        return [name for name in self._names if name in self._counts]
