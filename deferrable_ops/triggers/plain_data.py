"""What an operator may be given: plain data that can travel to the triggerer, and what is known only later."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

from deferrable_ops.exceptions import InputError


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
    return is_output(value) or (isinstance(value, str) and ("{{" in value or "{%" in value))


def is_output(value: Any) -> bool:
    """Return whether a value is another task's output, or a mapped group's argument."""
    # Airflow's classes for them share only this method.
    return hasattr(value, "iter_references")
