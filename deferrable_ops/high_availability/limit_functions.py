"""Calls the functions with which users compute ``runtime`` and ``endtime`` from the data of a DAG run."""

from __future__ import annotations

import pkgutil
from dataclasses import replace
from typing import Any

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability.check_calls import accepted_kwargs
from deferrable_ops.high_availability.facts import RunFacts
from deferrable_ops.high_availability.limits import Limits, forced_limits


def compute_limits(task_id: str, facts: RunFacts, declared: Limits, reference_date: str) -> Limits:
    """Call the functions in `declared` that compute limits, and return limits with the computed values.

    A function gets those of the following keyword arguments that its signature accepts: the part of Airflow's context
    that :meth:`RunFacts.context` returns, and ``reference_date``. If a param of the DAG run sets a limit, the function
    for this limit is not called.

    :param reference_date: the name of the date from which ``runtime`` and ``endtime`` are computed.
    :raises InputError: if a function cannot be imported, raises an exception, or returns an invalid limit.
    """
    functions = {"runtime": declared.runtime_function, "endtime": declared.endtime_function}
    if facts.is_forced(task_id) or not any(functions.values()):
        return declared
    forced = forced_limits(task_id, facts.params)
    context = facts.context() | {"reference_date": facts.reference(task_id, reference_date)}
    computed: dict[str, Any] = {}
    for name, path in functions.items():
        if path is not None and getattr(forced, name) is None:
            computed[name] = getattr(_returned_limit(name, path, context), name)
    return replace(declared, runtime_function=None, endtime_function=None, **computed)


def _returned_limit(name: str, path: str, context: dict[str, Any]) -> Limits:
    try:
        function = pkgutil.resolve_name(path)
        value = function(**accepted_kwargs(function, (), context))
    except (Exception, SystemExit) as error:
        raise InputError(
            f"the function {name}={path!r} failed ({type(error).__name__}: {error}); correct the function, or "
            "install its package on the triggerers"
        ) from error
    return Limits.of(
        **{"runtime": None, "endtime": None, "maxretrigger": None, name: value}, prefix=f"{path}: "
    )
