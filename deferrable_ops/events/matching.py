"""Checks whether an event matches a specification."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Final

from deferrable_ops.events.event import Event
from deferrable_ops.events.specifications import Match, Specification
from deferrable_ops.expressions import is_true
from deferrable_ops.plain_data import MAX_PAYLOAD_DEPTH

Path = tuple[str, ...]
Equality = tuple[Path, Hashable]
"""A path of keys, and the expected value at this path, converted by :func:`comparable`."""

_ABSENT: Final = object()


def matching_names(specifications: Mapping[str, Specification], event: Event, *, since: float) -> list[str]:
    """Return the names of the specifications that an event matches. Never raises.

    :param since: a time in seconds since the epoch; an event with an earlier time matches no specification.
    """
    if event.time < since:
        return []
    fields = event.fields()
    return [
        name
        for name, specification in specifications.items()
        if specification.source == event.source and matches_fields(specification.match, fields)
    ]


def matches_fields(match: Match, fields: dict[str, Any]) -> bool:
    """Return whether an event fulfils the ``match`` of a specification; False if ``match`` cannot be evaluated.

    Never raises.

    :param fields: the result of the event's method :meth:`~deferrable_ops.events.event.Event.fields`.
    """
    if match is None:
        return True
    if isinstance(match, str):
        return is_true(match, fields)
    return all(comparable(_value_at(fields, path)) == value for path, value in equalities(match))


def equalities(match: Mapping[str, Any], above: Path = ()) -> Iterator[Equality]:
    """Yield the path and the expected value of each field in a ``match`` that is a dict, sorted by path.

    A path consists of the keys of the nested dicts.
    """
    for key in sorted(match):
        value = match[key]
        if isinstance(value, dict):
            yield from equalities(value, (*above, key))
        else:
            yield (*above, key), comparable(value)


def comparable(value: Any, levels: int = MAX_PAYLOAD_DEPTH) -> Hashable:
    """Return a hashable value for a JSON value. Two returned values are equal if and only if the JSON values are equal.

    In Python, True equals 1. In JSON, true and 1 are different values. A stored payload never has more than `levels`
    nested levels, so a value with more levels equals no other value.
    """
    if value is None or isinstance(value, (str, int, float)):
        return (value,) if isinstance(value, bool) else value
    if levels == 0:
        return _Unequal()
    if isinstance(value, list):
        return "list", *(comparable(item, levels - 1) for item in value)
    if isinstance(value, dict):
        return "dict", frozenset((key, comparable(item, levels - 1)) for key, item in value.items())
    return _Unequal()


class _Unequal:
    """A value that is equal only to itself."""


def _value_at(fields: Any, path: Path) -> Any:
    for key in path:
        if not isinstance(fields, dict) or key not in fields:
            return _ABSENT
        fields = fields[key]
    return fields
