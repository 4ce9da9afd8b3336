"""Which arguments a check is called with: of its context, those that it takes."""

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
    """Return the keyword arguments that a function takes of a context, as Airflow's PythonOperator chooses them.

    :param op_args: the positional arguments that it is called with.
    :raises TypeError: never; what does not fit is found when it is called.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # of a builtin
        return {}
    taken = {one.name for one in [one for one in parameters if one.kind in _BY_POSITION][: len(op_args)]}
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
        positional_only = {one.name for one in parameters if one.kind is inspect.Parameter.POSITIONAL_ONLY}
        return {name: value for name, value in context.items() if name not in taken | positional_only}
    named = {one.name for one in parameters if one.kind in _BY_NAME} - taken
    return {name: value for name, value in context.items() if name in named}


def parse_result(returned: Any, log: Any) -> CheckResult:
    """Return what a check's return value means; FAIL/STOP where it means nothing, as in airflow-ha."""
    result = read_result(returned)
    if result is None:
        log.error(
            "The check returned %s; return a Result and an Action, as (Result.PASS, Action.CONTINUE)",
            f"a {type(returned).__name__}"
            if not isinstance(returned, (tuple, list))
            else repr(returned)[:200],
        )
        return Result.FAIL, Action.STOP
    return result
