"""When a wait for several events is over: conditions that only ever become true as more events come."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Name:
    """True once the event of this name has come."""

    name: str


@dataclass(frozen=True, slots=True)
class AtLeast:
    """True once so many of its terms are. ``a & b`` is two of two, ``a | b`` one of two.

    :param count: from 1 to the number of terms.
    """

    count: int
    terms: tuple[Condition, ...]


Condition = Name | AtLeast


def holds(condition: Condition, come: Collection[str]) -> bool:
    """Return whether a condition is true.

    :param come: the names of the events that have come.
    """
    return missing(condition, come) is None


def missing(condition: Condition, come: Collection[str]) -> Condition | None:
    """Return what must still come, as a condition on the events that have not; None when the condition is true."""
    if isinstance(condition, Name):
        return None if condition.name in come else condition
    left = tuple(term for term in (missing(term, come) for term in condition.terms) if term is not None)
    count = condition.count - (len(condition.terms) - len(left))
    if count <= 0:
        return None
    return left[0] if len(left) == 1 else AtLeast(count, left)


def describe(condition: Condition | None) -> str:
    """Return a condition as a person would say it: ``orders and (payments or signoff)``; None is ``nothing``."""
    if condition is None:
        return "nothing"
    if isinstance(condition, Name):
        return condition.name
    terms = [_within(term) for term in condition.terms]
    if condition.count == len(terms):
        return " and ".join(terms)
    if condition.count == 1:
        return " or ".join(terms)
    return f"{condition.count} of {', '.join(terms)}"


def names_in(condition: Condition) -> frozenset[str]:
    """Return the names of the events that a condition speaks of."""
    if isinstance(condition, Name):
        return frozenset({condition.name})
    return frozenset().union(*map(names_in, condition.terms))


def _within(term: Condition) -> str:
    return describe(term) if isinstance(term, Name) else f"({describe(term)})"
