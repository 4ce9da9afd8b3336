"""Finds out whether an operator's argument is a template, the output of another task, or plain data."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any, Final

from deferrable_ops.exceptions import InputError

MAX_PAYLOAD_DEPTH: Final = 100
"""How many levels of nested lists and objects a payload may have.

The number is limited because Airflow's serialisers call themselves for each level.
"""


def require_serializable(name: str, value: Any) -> None:
    """Check that a value can be sent to the triggerer.

    :param name: the argument's name, for the error message.
    :raises InputError: if the value contains an object that is not plain data, such as a function.
    """
    if callable(value):
        raise InputError(f"{name}= is a function, which cannot be sent to the triggerer; give plain data")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError(f"{name}= has the key {key!r}; keys must be strings")
            require_serializable(f"{name}[{key!r}]", item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            require_serializable(f"{name}[{index}]", item)
    elif not isinstance(value, (bool, int, float, str, NoneType)) and not is_output(value):
        raise InputError(
            f"{name}= holds a {type(value).__name__}, which is not plain data; "
            "give strings, numbers, booleans, lists and dicts"
        )
    elif isinstance(value, float) and not _is_finite(value):
        raise InputError(f"{name}= is {value}, which is not a JSON value; give a finite number")


def is_known_later(value: Any) -> bool:
    """Return whether a value is a template or another task's output, which cannot be checked when a DAG is parsed."""
    return is_output(value) or (isinstance(value, str) and has_template(value))


def is_output(value: Any) -> bool:
    """Return whether a value is another task's output, or an argument of a mapped task group."""
    # Airflow's classes for outputs and for these arguments have only this method in common.
    return hasattr(value, "iter_references")


def has_template(text: str) -> bool:
    """Return whether a string contains a Jinja template, which Airflow renders."""
    return "{{" in text or "{%" in text


def is_nested_deeper(value: Any, max_depth: int) -> bool:
    """Return whether a JSON value has more than `max_depth` levels of lists and objects."""
    level = [value]
    for _ in range(max_depth):
        level = [child for parent in level for child in _children(parent) if isinstance(child, (dict, list))]
        if not level:
            return False
    return True


def plain_copy(argument: str, value: Any, max_depth: int = MAX_PAYLOAD_DEPTH) -> Any:
    """Return a copy of a JSON value. Later changes of the original do not affect the copy.

    A reference to another task's output is not copied: the copy contains the same object.

    :param argument: the argument's name, for the error message.
    :param max_depth: how many levels of nested lists and dicts the value may have.
    :raises InputError: if the value contains an object that is not a JSON value, if a key of a dict is a template
        (Airflow does not render keys), or if the value has too many nested levels.
    """
    return _copied(argument, argument, value, max_depth, max_depth)


def _copied(argument: str, path: str, value: Any, levels_left: int, max_depth: int) -> Any:
    if value is None or isinstance(value, (bool, int, str)) or is_output(value):
        return value
    if isinstance(value, float):
        if not _is_finite(value):
            raise InputError(f"{path} is {value}, which is not a JSON value; give a finite number")
        return value
    if not isinstance(value, (dict, list, tuple)):
        raise InputError(
            f"{path} is a {type(value).__name__}, which is not plain data; "
            "give strings, numbers, booleans, lists and dicts"
        )
    if levels_left == 0:
        raise InputError(f"{argument} is nested deeper than {max_depth} levels; give fewer levels")
    if isinstance(value, dict):
        return {
            _checked_key(path, key): _copied(argument, f"{path}[{key!r}]", item, levels_left - 1, max_depth)
            for key, item in value.items()
        }
    return [
        _copied(argument, f"{path}[{index}]", item, levels_left - 1, max_depth)
        for index, item in enumerate(value)
    ]


def _is_finite(value: float) -> bool:
    # Infinity minus itself, and NaN minus itself, is NaN. NaN is not equal to 0.
    return value - value == 0


def _children(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _checked_key(path: str, key: Any) -> str:
    if not isinstance(key, str):
        raise InputError(f"{path} has the key {key!r}; JSON keys must be strings")
    if has_template(key):
        raise InputError(
            f"{path} has the template {key!r} as a key; use a fixed key, because Airflow renders only values"
        )
    return key
