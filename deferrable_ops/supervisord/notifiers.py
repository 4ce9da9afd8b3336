"""The notifiers that are called for events of programs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import Field

from deferrable_ops.exceptions import InputError
from deferrable_ops.supervisord.section import Model

_PATH: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*(\.[^\W\d]\w*)*")

NOTIFIER_FIX: Final = (
    "give AsyncCallback('package.module.Notifier', kwargs={...}), with a notifier class that has async_notify, or with "
    "an async function; the class or function must be in an installed package or in the plugins folder"
)
"""How to correct a notifier that the Triggerer cannot call; the last part of an error message."""


class ProgramNotifier(Model):
    """A class with ``async_notify``, or an async function, that the Triggerer calls for each event of a program.

    :param path: the dotted path of the class or function, which must be importable in the Triggerer.
    :param kwargs: arguments of the class or function; JSON data. They may contain secrets.
    """

    path: str
    kwargs: dict[str, Any] = Field(default_factory=dict, repr=False)


def parse_notifiers(given: Any) -> Any:
    """Return the value of ``on_program_event`` as a list of dicts with ``path`` and ``kwargs``.

    :param given: an AsyncCallback of Airflow, a dict, a class or function, its dotted path, or a list of these.
    :raises InputError: if a value cannot be sent to the Triggerer, or its kwargs are not JSON data.
    """
    if given is None:
        return []
    return [_parse(one) for one in (given if isinstance(given, list | tuple) else [given])]


def _parse(given: Any) -> dict[str, Any]:
    path, kwargs = _path_and_kwargs(given)
    # Airflow gives the modules of DAG files names that begin with "unusual_prefix_".
    if (
        not isinstance(path, str)
        or not _PATH.fullmatch(path)
        or path.startswith(("__main__.", "unusual_prefix_"))
    ):
        raise InputError(f"on_program_event={path!r} cannot be imported in the Triggerer; {NOTIFIER_FIX}")
    try:
        is_json = json.loads(json.dumps(kwargs)) == kwargs
    except (TypeError, ValueError):
        is_json = False
    if not is_json or not isinstance(kwargs, Mapping) or "context" in kwargs:
        raise InputError(
            f"the kwargs of on_program_event={path!r} must be a dict of JSON data without the key 'context'; use only "
            "strings, numbers, booleans, None, lists, and dicts whose keys are strings"
        )
    return {"path": path, "kwargs": dict(kwargs)}


def _path_and_kwargs(given: Any) -> tuple[Any, Any]:
    if isinstance(given, str):
        return given, {}
    if isinstance(given, Mapping):
        if unknown := sorted(map(str, given.keys() - {"path", "kwargs"})):
            raise InputError(f"on_program_event has the unknown key {unknown[0]!r}; use path and kwargs")
        return given.get("path"), given.get("kwargs") or {}
    if isinstance(given, ProgramNotifier) or type(given).__name__ == "AsyncCallback":
        return given.path, given.kwargs
    if callable(given) and hasattr(given, "__qualname__"):
        return f"{given.__module__}.{given.__qualname__}", {}
    raise InputError(
        f"on_program_event has an object of the class {type(given).__name__}, which cannot be sent to the Triggerer; "
        f"{NOTIFIER_FIX}"
    )
