"""Base classes and field types of the models with which YAML files of airflow-config describe tasks.

If airflow-pydantic is not installed, the base classes are plain pydantic models, which create the same tasks.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import FunctionType
from typing import Any, Final

from pydantic import BaseModel, BeforeValidator, PlainSerializer

from deferrable_ops.exceptions import InputError

_AIRFLOW_PYDANTIC: Final[Any] = import_module("airflow_pydantic") if find_spec("airflow_pydantic") else None


class _PlainTaskArgs(BaseModel, extra="allow"):
    """Replaces the class TaskArgs of airflow-pydantic if airflow-pydantic is not installed."""


class _PlainTask(_PlainTaskArgs):
    """Replaces the class Task of airflow-pydantic if airflow-pydantic is not installed."""

    task_id: str | None = None
    operator: Callable[..., Any]

    def instantiate(self, **kwargs: Any) -> Any:
        """Create the tasks.

        :param kwargs: ``dag``, and other arguments of the operator. Each of these arguments replaces the field of this
            model that has the argument's name.
        """
        return self.operator(**{**self.model_dump(exclude_unset=True, exclude={"operator"}), **kwargs})


TaskArgs: Any = _AIRFLOW_PYDANTIC.TaskArgs if _AIRFLOW_PYDANTIC else _PlainTaskArgs
Task: Any = _AIRFLOW_PYDANTIC.Task if _AIRFLOW_PYDANTIC else _PlainTask


def subclass_of(kind: type) -> Any:
    """Return a pydantic validator for a field that contains the class `kind` or a subclass, or the path of one."""

    def check(value: Any) -> Any:
        found = resolve_callable(value)
        if not (isinstance(found, type) and issubclass(found, kind)):
            raise InputError(
                f"operator={value!r} is not {kind.__name__} or a subclass; give one of these classes"
            )
        return found

    return BeforeValidator(check)


def _path_of(value: Any) -> Any:
    return f"{value.__module__}.{value.__qualname__}" if isinstance(value, (type, FunctionType)) else value


AS_PATH: Final = PlainSerializer(_path_of, when_used="json")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(item) for item in value]
    return value


AS_PLAIN_DATA: Final = BeforeValidator(_plain)
"""Converts the containers of Hydra, which airflow-pydantic and Airflow do not accept, to dicts and lists."""


def resolve_callable(path: Any) -> Any:
    """Return the function that a dotted path names, for example ``my_package.hosts.first_host``. If `path` names no
    function, return `path` unchanged: it may be a host name with dots.
    """
    if not isinstance(path, str) or "." not in path:
        return path
    try:
        found = pkgutil.resolve_name(path)
    except (AttributeError, ImportError, ValueError):
        return path
    return found if callable(found) else path
