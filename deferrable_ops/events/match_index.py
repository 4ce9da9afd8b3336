"""Finds the specifications whose ``match`` an event fulfils.

The search time hardly grows with the number of specifications.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from deferrable_ops.events.event import Event
from deferrable_ops.events.matching import Equality, comparable, equalities
from deferrable_ops.events.specifications import Match
from deferrable_ops.expressions import is_true, text_equalities

K = TypeVar("K", bound=Hashable)


class MatchIndex(Generic[K]):
    """An index of the ``match`` arguments of all tasks that wait for events from one source.

    A ``match`` that is a dict is stored in a tree. A node of the tree has the fields to check next, a field has the
    expected values, and each expected value leads to the next node. The search follows only the values in the event, so
    a search in a thousand dicts with the same fields takes as long as a search in one. A ``match`` that is a JMESPath
    expression is stored in a second tree, by the strings that the expression compares with fields. The search finds the
    possible expressions in the second tree and evaluates each of them once, even if many waiting tasks use the same
    expression.

    Each ``match`` is added with a key, and one key may have several ``match`` values. To save memory, the index stores
    no list of the ``match`` values of a key. To remove a ``match``, the caller must pass the key and an equal ``match``
    to :meth:`discard`.
    """

    def __init__(self) -> None:
        self._tree: _Node[K] = _Node()
        self._by_expression: dict[str, set[K]] = {}
        self._expressions: _Node[str] = _Node()

    def __bool__(self) -> bool:
        return bool(self._tree) or bool(self._by_expression)

    def add(self, key: K, match: Match) -> None:
        """Add a ``match`` for a key.

        :param match: the ``match`` of a specification, with rendered templates.
        """
        if isinstance(match, str):
            if match not in self._by_expression:
                self._by_expression[match] = set()
                self._expressions.add(match, text_equalities(match))
            self._by_expression[match].add(key)
        else:
            self._tree.add(key, _equalities(match))

    def discard(self, key: K, match: Match) -> None:
        """Remove a ``match`` of a key. If the index does not contain this ``match`` for this key, do nothing.

        :param match: an object that equals the added ``match``; it need not be the added object itself.
        """
        if not isinstance(match, str):
            self._tree.discard(key, _equalities(match))
        elif match in self._by_expression:
            keys = self._by_expression[match]
            keys.discard(key)
            if not keys:
                del self._by_expression[match]
                self._expressions.discard(match, text_equalities(match))

    def find(self, event: Event) -> set[K]:
        """Return the keys of every ``match`` that an event fulfils. Never raises."""
        fields = event.fields()
        found: set[K] = set()
        self._tree.search(fields, found)
        candidates: set[str] = set()
        self._expressions.search(fields, candidates)
        for expression in candidates:
            if is_true(expression, fields):
                found |= self._by_expression[expression]
        return found


class _Node(Generic[K]):
    """A node of the tree.

    The search reaches a node if the event has all expected values on the path from the root. If an expected value leads
    to only one key, and no more fields must be checked for this key, then the key itself is stored instead of a node.
    Storing the key instead of a node saves memory, because most expected values lead to only one key.

    :ivar keys: the keys that are found when the search reaches this node: a set, a single key, or None.
    :ivar fields: the fields of the event that the search checks next; None if no more fields are checked.
    """

    __slots__ = ("fields", "keys")

    def __init__(self, key: K | None = None) -> None:
        self.keys: set[K] | K | None = key
        self.fields: dict[str, _Field[K]] | None = None

    def __bool__(self) -> bool:
        return self.keys is not None or bool(self.fields)

    def add(self, key: K, expected: Sequence[Equality]) -> None:
        if expected:
            (path, value), *rest = expected
            if self.fields is None:
                self.fields = {}
            values = _field_at(self.fields, path).values
            child = values.get(value)
            if child is None and not rest:
                values[value] = key
                return
            if not isinstance(child, _Node):
                values[value] = child = _Node(child)
            child.add(key, rest)
        elif isinstance(self.keys, set):
            self.keys.add(key)
        elif self.keys is None:
            self.keys = key
        elif self.keys != key:
            self.keys = {self.keys, key}

    def discard(self, key: K, expected: Sequence[Equality]) -> None:
        if expected:
            (path, value), *rest = expected
            fields = self.fields or {}
            values = _values_at(fields, path)
            child = values.get(value)
            if isinstance(child, _Node):
                child.discard(key, rest)
                is_unused = not child
            else:
                is_unused = child == key and not rest
            if is_unused:
                del values[value]
                _prune(fields, path)
        elif isinstance(self.keys, set):
            self.keys.discard(key)
            self.keys = self.keys or None
        elif self.keys == key:
            self.keys = None

    def search(self, event: dict[str, Any], found: set[K]) -> None:
        if isinstance(self.keys, set):
            found |= self.keys
        elif self.keys is not None:
            found.add(self.keys)
        if self.fields:
            self._search_fields(self.fields, event, event, found)

    def _search_fields(
        self, expected: dict[str, _Field[K]], values: dict[str, Any], event: dict[str, Any], found: set[K]
    ) -> None:
        # Iterate over the smaller of the two dicts. This is fast both for many matches and for a large message.
        for name in expected if len(expected) <= len(values) else values:
            if name not in expected or name not in values:
                continue
            field, value = expected[name], values[name]
            if isinstance(value, dict):
                self._search_fields(field.fields, value, event, found)
            elif field.values:
                child = field.values.get(comparable(value))
                if isinstance(child, _Node):
                    child.search(event, found)
                elif child is not None:
                    found.add(child)


class _Field(Generic[K]):
    """A field to check: its expected values, and the fields that are nested in it."""

    __slots__ = ("fields", "values")

    def __init__(self) -> None:
        self.values: dict[Hashable, _Node[K] | K] = {}
        self.fields: dict[str, _Field[K]] = {}


def _equalities(match: Mapping[str, Any] | None) -> list[Equality]:
    return [] if match is None else list(equalities(match))


def _field_at(fields: dict[str, _Field[K]], path: Sequence[str]) -> _Field[K]:
    field = fields.setdefault(path[0], _Field())
    for key in path[1:]:
        field = field.fields.setdefault(key, _Field())
    return field


def _values_at(fields: dict[str, _Field[K]], path: Sequence[str]) -> dict[Hashable, _Node[K] | K]:
    *above, last = path
    for key in above:
        fields = fields[key].fields if key in fields else {}
    return fields[last].values if last in fields else {}


def _prune(fields: dict[str, _Field[K]], path: Sequence[str]) -> None:
    """Remove a field at the end of a path, and the fields above it, if no ``match`` uses them any more."""
    field = fields[path[0]]
    if len(path) > 1:
        _prune(field.fields, path[1:])
    if not field.values and not field.fields:
        del fields[path[0]]
