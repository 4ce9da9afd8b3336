"""Conditions that received events can fulfil. A condition that has become true stays true when more events arrive."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Name:
    """A condition that is true once an event of this name has been received."""

    name: str


@dataclass(frozen=True, slots=True)
class AtLeast:
    """A condition that is true once at least `count` terms are true.

    ``a & b`` has two terms and the count 2; ``a | b`` has two terms and the count 1.

    :param count: how many terms must be true, from 1 to the number of terms.
    """

    count: int
    terms: tuple[Condition, ...]


Condition = Name | AtLeast


def holds(condition: Condition, received: Collection[str]) -> bool:
    """Return whether a condition is true.

    :param received: the names of the received events.
    """
    return missing(condition, received) is None


def missing(condition: Condition, received: Collection[str]) -> Condition | None:
    """Return the part of a condition that is not true yet; None if the condition is true."""
    if isinstance(condition, Name):
        return None if condition.name in received else condition
    left = tuple(term for term in (missing(term, received) for term in condition.terms) if term is not None)
    count = condition.count - (len(condition.terms) - len(left))
    if count <= 0:
        return None
    return left[0] if len(left) == 1 else AtLeast(count, left)


def describe(condition: Condition | None) -> str:
    """Describe a condition in words, for example ``orders and (payments or signoff)``. For None, return ``nothing``."""
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
    """Return the event names that a condition uses."""
    if isinstance(condition, Name):
        return frozenset({condition.name})
    return frozenset().union(*map(names_in, condition.terms))


def _within(term: Condition) -> str:
    return describe(term) if isinstance(term, Name) else f"({describe(term)})"
