"""Merges many messages into fewer messages. Rules group the messages and combine their fields."""

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
    """A rule that merges each group of messages into one message.

    The merged message has the fields of the group's first message. Only the fields in `combine` have other values::

        Merge(match={"db": "sales"}, group_by=["table"], combine={"rows": "sum", "partition": "join:+"})

    :param match: selects the messages to which the rule applies, in the format of `match` of an event specification.
        If `match` is None, the rule applies to all messages that no earlier rule matched.
    :param group_by: the names of the fields by which messages are grouped. Messages with equal values in these fields
        form a group. Without field names, all matching messages are one group.
    :param combine: for each field name, how to combine the field's values: "first", "last", "sum", "min", "max",
        "list", "distinct" (a list without duplicates), "update" (merges dicts, later values win) or "join" (strings,
        separated by commas; "join:+" uses the separator "+"). A message without the field does not change the combined
        value.
    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
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
    """Convert merge rules into plain data, for serialization.

    :raises InputError: if an element is not a rule, or if the list is empty.
    """
    given = [rules] if isinstance(rules, Merge) else rules
    if not isinstance(given, (list, tuple)) or not given or not all(type(rule) is Merge for rule in given):
        raise InputError("merge= must be a Merge from deferrable_ops.events, or a list of at least one Merge")
    return [
        {"match": rule.match, "group_by": list(rule.group_by), "combine": dict(rule.combine)}
        for rule in given
    ]


def rules_from_json(data: Sequence[Mapping[str, Any]]) -> list[Merge]:
    """Convert the result of :func:`rules_to_json` back into merge rules.

    The templates in `data` must already be rendered.

    :raises InputError: if a rendered argument is wrong.
    """
    known = {item.name for item in fields(Merge)}
    return [Merge(**{name: value for name, value in rule.items() if name in known}) for rule in data]


def merge(payloads: Sequence[Any], rules: Sequence[Merge]) -> tuple[list[Any], int]:
    """Return the merged messages, and the number of messages that no rule matched.

    Each message is merged by the first rule that matches it. Only a message that is a JSON object can match a rule. The
    merged messages are in the order of the first messages of their groups.

    :raises InputError: if the values of a field cannot be combined.
    """
    groups: dict[Any, tuple[Merge, list[dict[str, Any]]]] = {}
    left_over = 0
    for payload in payloads:
        number = _matching_rule(rules, payload)
        if number is None:
            left_over += 1
            continue
        rule = rules[number]
        key = number, *(comparable(payload.get(name)) for name in rule.group_by)
        groups.setdefault(key, (rule, []))[1].append(payload)
    return [_merged(rule, found) for rule, found in groups.values()], left_over


def _matching_rule(rules: Sequence[Merge], payload: Any) -> int | None:
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
                f"merge= cannot combine the field {name!r} by {how!r}, because its values are {shown}; correct combine="
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
        raise TypeError(f"not all values are {kind.__name__}")
    return values


def _ordered(values: list[Any]) -> list[Any]:
    """Check that the values can be ordered, and return the values.

    All values must be numbers, or all values must be strings, for example ISO 8601 times.
    """
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
        raise InputError(f"group_by={names!r} must be a list of field names, for example ['db', 'table']")
    for name in names:
        if not isinstance(name, str) or not name:
            raise InputError(f"group_by= has {name!r}, which is not a field name; give non-empty strings")
    return tuple(names)


def _combinations(combine: Any) -> dict[str, str]:
    if not isinstance(combine, Mapping):
        raise InputError(
            f"combine={combine!r} must be a dict of field names and functions, for example {{'rows': 'sum'}}"
        )
    found: dict[str, str] = plain_copy("combine=", dict(combine))
    for name, how in found.items():
        known = isinstance(how, str) and (how in _COMBINATIONS or how.partition(":")[0] == _JOIN)
        if not known and not is_known_later(how):
            raise InputError(
                f"combine[{name!r}]={how!r} is unknown; give one of {', '.join(_COMBINATIONS)}, join, or "
                "join: followed by a separator, for example 'join:+'"
            )
    return found
