"""What an operator may be given: plain data that can travel to the triggerer, and what is known only later."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any, Final

from deferrable_ops.exceptions import InputError

DEEPEST: Final = 20
"""How many levels a ``match`` may have: it is copied, sent and compared by recursion."""


def require_serializable(name: str, value: Any) -> None:
    """Check that a value can travel to the triggerer.

    :raises InputError: it holds something that is not plain data, such as a function.
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
    elif isinstance(value, float) and value - value != 0:
        raise InputError(f"{name}= is {value}, which JSON does not have")


def is_known_later(value: Any) -> bool:
    """Return whether a value is a template or another task's output, so that it cannot be judged at parse time."""
    return is_output(value) or (isinstance(value, str) and has_template(value))


def is_output(value: Any) -> bool:
    """Return whether a value is another task's output, or a mapped group's argument."""
    # Airflow's classes for them share only this method.
    return hasattr(value, "iter_references")


def has_template(text: str) -> bool:
    """Return whether Airflow would render something in a text."""
    return "{{" in text or "{%" in text


def plain_copy(argument: str, value: Any, levels: int = DEEPEST) -> Any:
    """Return a copy of a JSON value, so that nobody changes it from outside; other tasks' outputs stay themselves.

    :param argument: how the user calls it, for the error.
    :raises InputError: it holds something that is no JSON value, or a template where Airflow renders none.
    """
    if value is None or isinstance(value, (bool, int, str)) or is_output(value):
        return value
    if isinstance(value, float):
        if value - value != 0:
            raise InputError(f"{argument} is {value}, which JSON does not have")
        return value
    if levels == 0:
        raise InputError(f"{argument} is nested deeper than {DEEPEST} levels; match on fewer")
    if isinstance(value, dict):
        return {
            _checked_key(argument, key): plain_copy(f"{argument}[{key!r}]", item, levels - 1)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain_copy(f"{argument}[{index}]", item, levels - 1) for index, item in enumerate(value)]
    raise InputError(
        f"{argument} is a {type(value).__name__}, which is not plain data; "
        "give strings, numbers, booleans, lists and dicts"
    )


def _checked_key(argument: str, key: Any) -> str:
    if not isinstance(key, str):
        raise InputError(f"{argument} has the key {key!r}; keys must be strings, as they are in JSON")
    if has_template(key):
        raise InputError(f"{argument} has the template {key!r} as a key; Airflow renders values only")
    return key
