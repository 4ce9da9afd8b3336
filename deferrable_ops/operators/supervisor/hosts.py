"""Hosts and ports as they may be given: a name, an object that has one, what a balancer chooses, or a function."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from deferrable_ops.exceptions import InputError


def host_name(given: Any) -> str | None:
    """Return the name of a host; None where none is given.

    :param given: a name, an object or a mapping with a ``name``, a query of airflow-pydantic's, or a function that
        returns one of these. It is asked each time that the DAG is parsed, and must come to the same each time.
    :raises InputError: it is none of them.
    """
    found = _chosen("host", given)
    name = found.get("name") if isinstance(found, Mapping) else getattr(found, "name", found)
    if name is None and found is None:
        return None
    if not isinstance(name, str) or not name.strip():
        raise InputError(
            f"host={found!r} names no host; give its name, an object with a name, or a function that returns one"
        )
    return name


def port_number(given: Any) -> int | str | None:
    """Return a port, as a number or as ``host:port``; None where none is given.

    :param given: as for :func:`host_name`, with a ``port``.
    :raises InputError: it is none.
    """
    found = _chosen("port", given)
    port = found.get("port") if isinstance(found, Mapping) else getattr(found, "port", found)
    if port is None and found is None:
        return None
    if isinstance(port, bool) or not isinstance(port, (int, str)):
        raise InputError(
            f"port={found!r} is no port; give its number, an object with a port, or a function that returns one"
        )
    return port


def resolve_callable(path: Any) -> Any:
    """Return the function that a dotted path names, and anything else as it is: a host's name has dots as well."""
    if not isinstance(path, str) or "." not in path:
        return path
    try:
        found = pkgutil.resolve_name(path)
    except (AttributeError, ImportError, ValueError):
        return path
    return found if callable(found) else path


def run_query(given: Any) -> Any:
    """Return what a query of airflow-pydantic's finds: the first by name, because a DAG must not change by itself.

    :raises InputError: it finds none.
    """
    if not callable(getattr(given, "execute", None)):
        return given
    asked = given.model_copy(update={"kind": "filter"}) if hasattr(given, "model_copy") else given
    try:
        found = asked.execute()
    except RuntimeError as error:
        raise InputError(f"the query finds nothing: {error}") from None
    return min(found) if isinstance(found, list) else found


def _chosen(argument: str, given: Any) -> Any:
    found = run_query(given)
    if _is_function(found):
        try:
            found = run_query(found())
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{argument}= is a function, and calling it failed with {type(error).__name__}: {error}"
            ) from error
    return found


def _is_function(value: Any) -> bool:
    return isinstance(value, Callable) and not isinstance(value, type)  # type: ignore[arg-type]
