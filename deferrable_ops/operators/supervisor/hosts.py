"""Converts the arguments ``host`` and ``port`` of SupervisorSSH to a host name and a port number.

Each argument can be a plain value, an object that has the value as an attribute, a query of airflow-pydantic, or a
function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deferrable_ops.exceptions import InputError


def host_name(given: Any) -> str | None:
    """Return the host name that the argument ``host`` gives; None if `given` is None.

    :param given: a host name, an object or mapping with a ``name``, a query of airflow-pydantic, or a function that
        returns any of these. A query or a function runs each time the DAG is parsed, and must return the same result
        each time.
    :raises InputError: if `given` has a type that is not supported.
    """
    found = _resolve("host", given)
    name = found.get("name") if isinstance(found, Mapping) else getattr(found, "name", found)
    if name is None and found is None:
        return None
    if not isinstance(name, str) or not name.strip():
        raise InputError(
            f"host={found!r} is not a host; give a host name, an object with the attribute `name`, or a function that "
            "returns a host name or such an object"
        )
    return name


def port_number(given: Any) -> int | str | None:
    """Return the port that the argument ``port`` gives, as a number or as ``host:port``; None if `given` is None.

    :param given: a port number, an object or mapping with a ``port``, a query of airflow-pydantic, or a function that
        returns any of these.
    :raises InputError: if the result is not a port number or ``host:port``.
    """
    found = _resolve("port", given)
    port = found.get("port") if isinstance(found, Mapping) else getattr(found, "port", found)
    if port is None and found is None:
        return None
    if isinstance(port, bool) or not isinstance(port, (int, str)):
        raise InputError(
            f"port={found!r} is not a port; give a port number, an object with the attribute `port`, or a "
            "function that returns a port number or such an object"
        )
    return port


def run_query(given: Any) -> Any:
    """Run a query of airflow-pydantic, sort the results by name, and return the first result. If `given` is not a
    query, return `given`.

    airflow-pydantic itself returns a random result of the query. With a random host or port, each parse of the DAG file
    could create a new DAG version.

    :raises InputError: if the query has no results.
    """
    if not callable(getattr(given, "execute", None)):
        return given
    query = given.model_copy(update={"kind": "filter"}) if hasattr(given, "model_copy") else given
    try:
        found = query.execute()
    except RuntimeError as error:
        raise InputError(
            f"the airflow-pydantic query in host= or port= has no results ({error}); change the query"
        ) from None
    return min(found) if isinstance(found, list) else found


def _resolve(argument: str, given: Any) -> Any:
    found = run_query(given)
    if _is_function(found):
        try:
            found = run_query(found())
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"the function in {argument}= failed; correct the function. {type(error).__name__}: {error}"
            ) from error
    return found


def _is_function(value: Any) -> bool:
    return isinstance(value, Callable) and not isinstance(value, type)  # type: ignore[arg-type]
