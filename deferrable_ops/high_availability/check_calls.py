"""Selects the arguments with which a check function is called, and interprets the function's return value."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deferrable_ops.high_availability.results import Action, CheckResult, Result, read_result

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def accepted_kwargs(
    function: Callable[..., Any], op_args: Sequence[Any], context: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the items of a context that a function accepts as keyword arguments, as Airflow's PythonOperator does.

    :param op_args: the positional arguments of the call. An item for a parameter that `op_args` already sets is not
        returned.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    # The function is a builtin without a signature.
    except (TypeError, ValueError):
        return {}
    taken = {one.name for one in [one for one in parameters if one.kind in _BY_POSITION][: len(op_args)]}
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
        positional_only = {one.name for one in parameters if one.kind is inspect.Parameter.POSITIONAL_ONLY}
        return {name: value for name, value in context.items() if name not in taken | positional_only}
    named = {one.name for one in parameters if one.kind in _BY_NAME} - taken
    return {name: value for name, value in context.items() if name in named}


def parse_result(returned: Any, log: Any) -> CheckResult:
    """Return the result and the action from the return value of a check function.

    If the return value is not a result and an action, return FAIL and STOP, as the package airflow-ha does.
    """
    result = read_result(returned)
    if result is None:
        log.error(
            "The check returned %s, so it counts as FAIL/STOP; return a tuple of Result and Action, "
            "e.g. (Result.PASS, Action.CONTINUE)",
            f"a {type(returned).__name__}"
            if not isinstance(returned, (tuple, list))
            else repr(returned)[:200],
        )
        return Result.FAIL, Action.STOP
    return result
