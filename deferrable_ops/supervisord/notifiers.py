"""The notifiers that the field ``on_program_event`` of a configuration names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import Field

from deferrable_ops.exceptions import InputError
from deferrable_ops.supervisord.section import Model

_PATH: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_FIX: Final = (
    "give AsyncCallback('package.module.Notifier', kwargs={...}) with a class or an async function of an installed "
    "package"
)


class ProgramNotifier(Model):
    """A class with ``async_notify``, or an async function, that the Triggerer calls for each program event.

    :param path: the dotted path of the class or function, which must be importable in the Triggerer.
    :param kwargs: arguments of the class or function; JSON data. They may contain secrets.
    """

    path: str
    kwargs: dict[str, Any] = Field(default_factory=dict, repr=False)


def parse_notifiers(given: Any) -> Any:
    """Return the value of ``on_program_event`` as a list of dicts with ``path`` and ``kwargs``.

    :param given: an AsyncCallback of Airflow, a dict, a class or function, its dotted path, or a list of these.
    :raises InputError: if a value cannot be imported in the Triggerer, or its kwargs are not JSON data.
    """
    if given is None:
        return []
    return [_parse(one) for one in (given if isinstance(given, list | tuple) else [given])]


def _parse(given: Any) -> dict[str, Any]:
    if isinstance(given, ProgramNotifier):
        return given.model_dump()
    if isinstance(given, str):
        path, kwargs = given, {}
    elif isinstance(given, Mapping):
        if unknown := set(given) - {"path", "kwargs"}:
            raise InputError(f"on_program_event has the unknown key {min(unknown)!r}; use path and kwargs")
        path, kwargs = given.get("path"), given.get("kwargs") or {}
    elif hasattr(given, "path") and hasattr(given, "kwargs"):
        path, kwargs = given.path, given.kwargs
    elif callable(given) and hasattr(given, "__qualname__"):
        path, kwargs = f"{given.__module__}.{given.__qualname__}", {}
    else:
        raise InputError(
            f"on_program_event= has an object of the class {type(given).__name__}, which cannot be sent to the "
            f"Triggerer; {_FIX}"
        )
    # Airflow gives the modules of DAG files names that begin with "unusual_prefix_".
    if (
        not isinstance(path, str)
        or not _PATH.fullmatch(path)
        or path.startswith(("__main__.", "unusual_prefix_"))
    ):
        raise InputError(f"on_program_event={path!r} cannot be imported in the Triggerer; {_FIX}")
    try:
        same = json.loads(json.dumps(kwargs)) == kwargs
    except (TypeError, ValueError):
        same = False
    if not same or not isinstance(kwargs, Mapping) or "context" in kwargs:
        raise InputError(
            f"the kwargs of on_program_event={path!r} must be a dict of JSON data without the key 'context'; use only "
            "strings, numbers, booleans, None, lists, and dicts whose keys are strings"
        )
    return {"path": path, "kwargs": dict(kwargs)}
