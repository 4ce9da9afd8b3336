"""Checks JMESPath expressions when a DAG is parsed, and evaluates JMESPath expressions on messages."""

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

# JMESPath's own errors, and the errors of Python that JMESPath's functions do not catch.
EVALUATION_ERRORS: Final = (
    JMESPathError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


_COMPARATORS: Final = frozenset({"eq", "ne", "lt", "lte", "gt", "gte"})
_UNQUOTED_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_expression(argument: str, expression: str) -> None:
    """Check a JMESPath expression at the time when a DAG is parsed.

    Function calls are checked as well, because an expression that calls an unknown function would never match a
    message, and no error would show why.

    :param argument: the argument's name, for the error message.
    :raises InputError: if the expression is malformed, compares with a string in double quotes, calls an unknown
        function, or calls a function with a wrong number of arguments.
    """
    try:
        tree = compiled(expression).parsed
    except JMESPathError as error:
        raise InputError(
            f"{argument}={expression!r} is not JMESPath: {str(error).splitlines()[0]}; "
            "see jmespath.org, and write text in single quotes, for example 'done'"
        ) from None
    except RecursionError:
        raise InputError(
            f"{argument}= is nested too deeply for JMESPath; write a simpler expression"
        ) from None
    _refuse_text_in_double_quotes(argument, expression)
    for name, given in _calls(tree):
        _check_call(argument, name, given)


def is_true(expression: str, value: Any) -> bool:
    """Return whether an expression is true for a value; False if the expression cannot be evaluated. Never raises."""
    try:
        return is_truthy(compiled(expression).search(value))
    except EVALUATION_ERRORS:
        return False


def is_truthy(found: Any) -> bool:
    """Return whether JMESPath regards a value as true.

    False, null, and empty strings, lists and objects are not true. The number 0 is true.
    """
    return (
        found is not None and found is not False and not (isinstance(found, (str, list, dict)) and not found)
    )


def text_equalities(expression: str) -> list[tuple[tuple[str, ...], str]]:
    """Return the comparisons ``path == 'string'`` that must be true for the expression to be true. Never raises.

    For example, ``status == 'done' && run.id == '7' && amount > `0` `` yields a pair for ``status`` and a pair for
    ``run.id``.

    :return: pairs of a path and the string with which the path is compared, sorted.
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
    """Compile a JMESPath expression, and cache the result, because JMESPath's own cache holds only 128 expressions.

    :raises jmespath.exceptions.JMESPathError: if the expression is malformed.
    """
    return jmespath.compile(expression)


def _refuse_text_in_double_quotes(argument: str, expression: str) -> None:
    """Reject ``state == "done"``, which compares two fields, because a word in double quotes is a field's name."""
    tokens = list(Lexer().tokenize(expression))
    for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        compared = any(beside and beside["type"] in _COMPARATORS for beside in (before, after))
        if compared and token["type"] == "quoted_identifier" and _UNQUOTED_NAME.fullmatch(token["value"]):
            name = token["value"]
            raise InputError(
                f"{argument}={expression!r} compares with the field {name}, because JMESPath reads a text in double "
                f"quotes as a field; write '{name}' for the text, or {name} without quotes for the field"
            )


def _check_call(argument: str, name: str, given: int) -> None:
    known = Functions.FUNCTION_TABLE.get(name)
    if known is None:
        raise InputError(
            f"{argument}= calls {name}(), which JMESPath does not have; "
            "use one of the functions at jmespath.org/specification.html"
        )
    takes = known["signature"]
    variadic = bool(takes) and bool(takes[-1].get("variadic"))
    if given < len(takes) or (given > len(takes) and not variadic):
        least = "at least " if variadic else ""
        raise InputError(
            f"{argument}= calls {name}() with {given} arguments, but the function takes {least}{len(takes)}"
        )


def _path(node: Any) -> tuple[str, ...]:
    """Return the keys of a path such as ``run.id``, or an empty tuple for an expression that is not a path."""
    if node["type"] == "field":
        return (node["value"],)
    if node["type"] != "subexpression":
        return ()
    parts = [_path(child) for child in node["children"]]
    return tuple(key for part in parts for key in part) if all(parts) else ()


def _calls(tree: Any) -> Iterator[tuple[str, int]]:
    """Yield the name and argument count of every function call in a parsed expression."""
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        # A slice such as [0:5] has numbers as children, which are not nodes.
        if not isinstance(node, dict):
            continue
        if node["type"] == "function_expression":
            yield node["value"], len(node["children"])
        nodes += node["children"]
