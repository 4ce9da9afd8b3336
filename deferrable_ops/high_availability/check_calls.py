"""Selects the arguments with which a check function is called, and interprets the function's return value."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability.results import Action, CheckResult, Result, read_result

TRIGGERER_CONTEXT: Final = frozenset(
    {
        "dag_run",
        "data_interval_end",
        "data_interval_start",
        "ds",
        "ds_nodash",
        "logical_date",
        "params",
        "run_id",
        "task_instance",
        "templates_dict",
        "ti",
        "ts",
        "ts_nodash",
        "ts_nodash_with_tz",
    }
)
"""The names of Airflow's context that a check gets in a triggerer."""

_TASK_INSTANCE: Final = frozenset(
    {"dag_id", "id", "map_index", "run_id", "task_id", "try_number", "xcom_pull"}
)
TRIGGERER_ATTRIBUTES: Final = {
    "ti": _TASK_INSTANCE,
    "task_instance": _TASK_INSTANCE,
    "dag_run": frozenset(
        {
            "conf",
            "dag_id",
            "data_interval_end",
            "data_interval_start",
            "logical_date",
            "run_after",
            "run_id",
            "run_type",
            "start_date",
        }
    ),
}
"""The attributes that a check can use in a triggerer, for each object of Airflow's context."""

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def accepted_kwargs(
    function: Callable[..., Any], op_args: Sequence[Any], context: Mapping[str, Any]
) -> dict[str, Any]:
    """Return those items of a context that a function accepts as keyword arguments. Airflow's PythonOperator selects
    the same items.

    :param op_args: the positional arguments of the call. If a positional argument already sets a parameter, the item
        with the name of this parameter is not returned.
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


def missing_parameters(
    signature: inspect.Signature, op_args: Sequence[Any], names: Collection[str]
) -> list[str]:
    """Return the names of the required parameters of a function that a call does not set.

    :param op_args: the positional arguments of the call.
    :param names: the names of the keyword arguments of the call.
    """
    required = [
        one
        for one in list(signature.parameters.values())[len(op_args) :]
        if one.kind in _BY_NAME and one.default is inspect.Parameter.empty
    ]
    return [one.name for one in required if one.name not in names]


def require_parameters(function: Callable[..., Any], op_args: Sequence[Any], names: Collection[str]) -> None:
    """Check that a call of a check function sets all required parameters.

    :raises InputError: if the call does not set a required parameter.
    """
    try:
        signature = inspect.signature(function)
    # The function is a builtin without a signature.
    except (TypeError, ValueError):
        return
    missing = missing_parameters(signature, op_args, names)
    if missing:
        raise InputError(
            f"python_callable has the required parameter {missing[0]!r}, which is neither in op_kwargs= nor in the "
            "context of this check; set it in op_kwargs=, or give the parameter a default. If only a worker has it, "
            "pass the function itself instead of its path"
        )


def parse_result(returned: Any, log: Any) -> CheckResult:
    """Return the result and the action from the return value of a check function.

    If the return value is not a result and an action, return FAIL and STOP, as the package airflow-ha does.
    """
    result = read_result(returned)
    if result is None:
        log.error(
            "The check returned %s, so the check counts as FAIL/STOP; return a tuple of Result and Action, "
            "e.g. (Result.PASS, Action.CONTINUE)",
            f"a {type(returned).__name__}"
            if not isinstance(returned, (tuple, list))
            else repr(returned)[:200],
        )
        return Result.FAIL, Action.STOP
    return result
