"""Which of many matches an event meets, at a cost that hardly grows with their number."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from deferrable_ops.events.event import Event
from deferrable_ops.events.matching import Equality, comparable, equalities
from deferrable_ops.events.specifications import Match
from deferrable_ops.expressions import is_true, text_equalities

K = TypeVar("K", bound=Hashable)


class MatchIndex(Generic[K]):
    """The matches of one source's waits.

    Equalities are kept in a tree: under each node the fields to look at next, under a field the values that are
    wanted there, under a value the next node. An event goes down only where its values are wanted, so that a
    thousand matches on the same keys cost what one does. JMESPath expressions are in a tree of their own, by the
    texts that they compare with; those that an event leads to are tried, each once, however many matches have it.

    A key may have several matches. It is not noted which: there are thousands of keys, and whose they are knows.
    """

    def __init__(self) -> None:
        self._tree: _Node[K] = _Node()
        self._by_expression: dict[str, set[K]] = {}
        self._expressions: _Node[str] = _Node()

    def __bool__(self) -> bool:
        return bool(self._tree) or bool(self._by_expression)

    def add(self, key: K, match: Match) -> None:
        """Add a match of a key.

        :param match: a specification's, with its templates rendered.
        """
        if isinstance(match, str):
            if match not in self._by_expression:
                self._by_expression[match] = set()
                self._expressions.add(match, text_equalities(match))
            self._by_expression[match].add(key)
        else:
            self._tree.add(key, _equalities(match))

    def discard(self, key: K, match: Match) -> None:
        """Forget a match of a key, if the key has it."""
        if not isinstance(match, str):
            self._tree.discard(key, _equalities(match))
        elif match in self._by_expression:
            keys = self._by_expression[match]
            keys.discard(key)
            if not keys:
                del self._by_expression[match]
                self._expressions.discard(match, text_equalities(match))

    def find(self, event: Event) -> set[K]:
        """Return the keys of all matches that an event meets. Never raises."""
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
    """Where all equalities so far are met. Most are wanted by one key, which asks for no more: it is there itself,
    in place of a node.

    :ivar keys: of the matches that ask for no more: a set, or the only one, or None.
    :ivar fields: what the others ask for next; None: there are no others.
    """

    __slots__ = ("fields", "keys")

    def __init__(self, key: K | None = None) -> None:
        self.keys: set[K] | K | None = key
        self.fields: dict[str, _Field[K]] | None = None

    def __bool__(self) -> bool:
        return self.keys is not None or bool(self.fields)

    def add(self, key: K, wanted: Sequence[Equality]) -> None:
        if wanted:
            (path, value), *rest = wanted
            if self.fields is None:
                self.fields = {}
            values = _field_at(self.fields, path).values
            next_one = values.get(value)
            if next_one is None and not rest:
                values[value] = key
                return
            if not isinstance(next_one, _Node):
                values[value] = next_one = _Node(next_one)
            next_one.add(key, rest)
        elif isinstance(self.keys, set):
            self.keys.add(key)
        elif self.keys is None:
            self.keys = key
        elif self.keys != key:
            self.keys = {self.keys, key}

    def discard(self, key: K, wanted: Sequence[Equality]) -> None:
        if wanted:
            (path, value), *rest = wanted
            fields = self.fields or {}
            values = _values_at(fields, path)
            next_one = values.get(value)
            if isinstance(next_one, _Node):
                next_one.discard(key, rest)
                is_over = not next_one
            else:
                is_over = next_one == key and not rest
            if is_over:
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
        self, wanted: dict[str, _Field[K]], values: dict[str, Any], event: dict[str, Any], found: set[K]
    ) -> None:
        # Through the shorter of the two: neither many matches nor a large message make it slow.
        for name in wanted if len(wanted) <= len(values) else values:
            if name not in wanted or name not in values:
                continue
            field, value = wanted[name], values[name]
            if isinstance(value, dict):
                self._search_fields(field.fields, value, event, found)
            elif field.values:
                met = field.values.get(comparable(value))
                if isinstance(met, _Node):
                    met.search(event, found)
                elif met is not None:
                    found.add(met)


class _Field(Generic[K]):
    """A key of an event: the values that are wanted there, and the keys that are wanted below it."""

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
    """Drop the fields of a path that nothing asks for any more."""
    field = fields[path[0]]
    if len(path) > 1:
        _prune(field.fields, path[1:])
    if not field.values and not field.fields:
        del fields[path[0]]
