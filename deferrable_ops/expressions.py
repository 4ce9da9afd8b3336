"""JMESPath on what services send: what is refused when a DAG is parsed, and what is true of a message."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

import jmespath
from jmespath.exceptions import JMESPathError
from jmespath.functions import Functions
from jmespath.lexer import Lexer

from deferrable_ops.exceptions import InputError

# JMESPath's own errors, and what its functions let through from Python.
CANNOT_BE_EVALUATED: Final = (
    JMESPathError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


_COMPARATORS: Final = frozenset({"eq", "ne", "lt", "lte", "gt", "gte"})
_NEEDS_NO_QUOTES = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_expression(argument: str, expression: str) -> None:
    """Check a JMESPath expression as far as that is possible without a message.

    A function that JMESPath does not have is found here too: on messages, it would only make every one of them fail
    to match.

    :param argument: how the user calls it, for the error.
    :raises InputError: it is malformed, compares with a text in double quotes, or calls a function that is unknown or
        takes other arguments.
    """
    try:
        tree = compiled(expression).parsed
    except JMESPathError as error:
        raise InputError(
            f"{argument}={expression!r} is not JMESPath: {str(error).splitlines()[0]}; "
            "see jmespath.org, and quote text as 'done'"
        ) from None
    except RecursionError:
        raise InputError(
            f"{argument}= is nested too deeply for JMESPath; write a simpler expression"
        ) from None
    _refuse_needless_quotes(argument, expression)
    for name, given in _calls(tree):
        _check_call(argument, name, given)


def is_true(expression: str, value: Any) -> bool:
    """Return whether an expression is true of a value; False where it cannot be evaluated. Never raises."""
    try:
        return is_truth(compiled(expression).search(value))
    except CANNOT_BE_EVALUATED:
        return False


def is_truth(found: Any) -> bool:
    """Return whether a value counts as true: false, null, and empty strings, lists and objects do not; 0 does."""
    return (
        found is not None and found is not False and not (isinstance(found, (str, list, dict)) and not found)
    )


def text_equalities(expression: str) -> list[tuple[tuple[str, ...], str]]:
    """Return the paths at which a text must stand wherever an expression is true, in their order.

    Those of ``status == 'done' && run.id == '7' && amount > `0` `` are status and run.id. Never raises.
    """
    try:
        nodes = [compiled(expression).parsed]
    except (JMESPathError, RecursionError):
        return []
    found: set[tuple[tuple[str, ...], str]] = set()
    while nodes:
        node = nodes.pop()
        if node["type"] == "and_expression":
            nodes += node["children"]
        elif node["type"] == "comparator" and node["value"] == "eq":
            one, other = node["children"]
            for path, literal in ((_path(one), other), (_path(other), one)):
                if path and literal["type"] == "literal" and isinstance(literal["value"], str):
                    found.add((path, literal["value"]))
    return sorted(found)


@lru_cache(maxsize=8192)
def compiled(expression: str) -> Any:
    """Return an expression ready to search with. JMESPath itself remembers 128 of them, and there are more waits.

    :raises jmespath.exceptions.JMESPathError: it is malformed.
    """
    return jmespath.compile(expression)


def _refuse_needless_quotes(argument: str, expression: str) -> None:
    """Refuse ``state == "done"``: double quotes make a field's name, so that nothing would ever be equal."""
    tokens = list(Lexer().tokenize(expression))
    for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        compared = any(beside and beside["type"] in _COMPARATORS for beside in (before, after))
        if compared and token["type"] == "quoted_identifier" and _NEEDS_NO_QUOTES.fullmatch(token["value"]):
            name = token["value"]
            raise InputError(
                f"{argument}={expression!r} compares with the field {name}: in JMESPath a text stands in single "
                f"quotes; write '{name}' for the text, or {name} without quotes for the field"
            )


def _check_call(argument: str, name: str, given: int) -> None:
    known = Functions.FUNCTION_TABLE.get(name)
    if known is None:
        raise InputError(
            f"{argument}= calls {name}(), which JMESPath does not have; "
            "its functions are listed at jmespath.org/specification.html"
        )
    takes = known["signature"]
    variadic = bool(takes) and bool(takes[-1].get("variadic"))
    if given < len(takes) or (given > len(takes) and not variadic):
        least = "at least " if variadic else ""
        raise InputError(f"{argument}= gives {name}() {given} arguments; it takes {least}{len(takes)}")


def _path(node: Any) -> tuple[str, ...]:
    """Return the keys of a path as ``run.id``; none for any other expression."""
    if node["type"] == "field":
        return (node["value"],)
    if node["type"] != "subexpression":
        return ()
    parts = [_path(child) for child in node["children"]]
    return tuple(key for part in parts for key in part) if all(parts) else ()


def _calls(tree: Any) -> Iterator[tuple[str, int]]:
    """Yield the name and the number of arguments of every function call in a parsed expression."""
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if not isinstance(node, dict):  # a slice's numbers
            continue
        if node["type"] == "function_expression":
            yield node["value"], len(node["children"])
        nodes += node["children"]
