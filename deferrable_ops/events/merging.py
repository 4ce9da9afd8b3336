"""Making one message of many: rules that say which belong together, and what becomes of their fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from deferrable_ops.events.matching import comparable, matches_fields
from deferrable_ops.events.specifications import ChannelEvent, Match
from deferrable_ops.exceptions import InputError
from deferrable_ops.plain_data import is_known_later, plain_copy

_JOIN: Final = "join"
_SEPARATOR: Final = ","


@dataclass(frozen=True, slots=True)
class Merge:
    """A rule by which messages that belong together become one.

    The merged message has the fields of the first one, but those that `combine` names::

        Merge(match={"db": "sales"}, group_by=["table"], combine={"rows": "sum", "partition": "join:+"})

    :param match: which messages the rule takes, as an event's ``match``; None takes all that no earlier rule took.
    :param group_by: the fields in which messages must be equal to belong together; without any, all that the rule takes
        become one.
    :param combine: by the field's name, how its values become one: "first", "last", "sum", "min", "max", "list",
        "distinct" (a list without repetitions), "update" (dicts into one, later values win) or "join" (texts, with
        commas; "join:+" with another separator). What lacks the field is passed over.
    :raises InputError: an argument is wrong; the message names it and the fix.
    """

    match: Match = None
    group_by: Sequence[str] = field(default=(), kw_only=True)
    combine: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        """Check the arguments."""
        object.__setattr__(self, "match", ChannelEvent("a", match=self.match).match)
        object.__setattr__(self, "group_by", _names(self.group_by))
        object.__setattr__(self, "combine", _combinations(self.combine))


def rules_to_json(rules: Any) -> list[dict[str, Any]]:
    """Return rules as the plain data in which they travel.

    :raises InputError: they are none.
    """
    given = [rules] if isinstance(rules, Merge) else rules
    if not isinstance(given, (list, tuple)) or not given or not all(type(rule) is Merge for rule in given):
        raise InputError("merge= must be a Merge of deferrable_ops.events, or a list of them")
    return [
        {"match": rule.match, "group_by": list(rule.group_by), "combine": dict(rule.combine)}
        for rule in given
    ]


def rules_from_json(data: Sequence[Mapping[str, Any]]) -> list[Merge]:
    """Return the rules that :func:`rules_to_json` wrote, now that their templates are rendered.

    :raises InputError: a rendered argument is wrong.
    """
    known = {item.name for item in fields(Merge)}
    return [Merge(**{name: value for name, value in rule.items() if name in known}) for rule in data]


def merge(payloads: Sequence[Any], rules: Sequence[Merge]) -> tuple[list[Any], int]:
    """Return the merged messages, in the order in which the first of each came, and how many no rule took.

    A message is taken by the first rule that matches it. Only JSON objects can be taken.

    :raises InputError: values cannot be combined as a rule says.
    """
    groups: dict[Any, tuple[Merge, list[dict[str, Any]]]] = {}
    left_over = 0
    for payload in payloads:
        number = _taken_by(rules, payload)
        if number is None:
            left_over += 1
            continue
        rule = rules[number]
        key = number, *(comparable(payload.get(name)) for name in rule.group_by)
        groups.setdefault(key, (rule, []))[1].append(payload)
    return [_merged(rule, found) for rule, found in groups.values()], left_over


def _taken_by(rules: Sequence[Merge], payload: Any) -> int | None:
    if not isinstance(payload, dict):
        return None
    return next((number for number, rule in enumerate(rules) if matches_fields(rule.match, payload)), None)


def _merged(rule: Merge, payloads: Sequence[dict[str, Any]]) -> dict[str, Any]:
    merged = dict(payloads[0])
    for name, how in rule.combine.items():
        values = [payload[name] for payload in payloads if name in payload]
        if not values:
            continue
        try:
            merged[name] = _combined(how, values)
        except (TypeError, ValueError):
            shown = json.dumps(values[:3])[:200]
            raise InputError(
                f"merge= cannot combine the field {name!r} by {how!r}: its values are {shown}"
            ) from None
    return merged


def _combined(how: str, values: list[Any]) -> Any:
    name, _, separator = how.partition(":")
    if name == _JOIN:
        return (separator or _SEPARATOR).join(_only(str, values))
    return _COMBINATIONS[name](values)


def _sum(values: list[Any]) -> Any:
    return sum(_numbers(values))


def _numbers(values: list[Any]) -> list[Any]:
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
        raise TypeError("not numbers")
    return values


def _only(kind: type[Any], values: list[Any]) -> list[Any]:
    if not all(isinstance(value, kind) for value in values):
        raise TypeError(f"not all of them are {kind.__name__}")
    return values


def _ordered(values: list[Any]) -> list[Any]:
    """Return values that have an order: numbers, or texts as ISO 8601 times are."""
    return _only(str, values) if isinstance(values[0], str) else _numbers(values)


def _distinct(values: list[Any]) -> list[Any]:
    found: dict[Any, Any] = {}
    for value in values:
        found.setdefault(comparable(value), value)
    return list(found.values())


def _updated(values: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for value in _only(dict, values):
        found.update(value)
    return found


_COMBINATIONS: Final[dict[str, Callable[[list[Any]], Any]]] = {
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
    "sum": _sum,
    "min": lambda values: min(_ordered(values)),
    "max": lambda values: max(_ordered(values)),
    "list": lambda values: values,
    "distinct": _distinct,
    "update": _updated,
}


def _names(names: Any) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise InputError(f"group_by={names!r} must be a list of fields, as ['db', 'table']")
    for name in names:
        if not isinstance(name, str) or not name:
            raise InputError(f"group_by= has {name!r}, which is not the name of a field")
    return tuple(names)


def _combinations(combine: Any) -> dict[str, str]:
    if not isinstance(combine, Mapping):
        raise InputError(f"combine={combine!r} must be a dict of fields and how their values become one")
    found: dict[str, str] = plain_copy("combine=", dict(combine))
    for name, how in found.items():
        known = isinstance(how, str) and (how in _COMBINATIONS or how.partition(":")[0] == _JOIN)
        if not known and not is_known_later(how):
            raise InputError(
                f"combine[{name!r}]={how!r} is not known; write one of {', '.join(_COMBINATIONS)}, join or join:+"
            )
    return found
