"""Accepts the argument names of the google provider's Dataflow operators, for DAGs that move to this library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from deferrable_ops.exceptions import InputError
from deferrable_ops.triggers.dataflow.request import to_camel

# `dataflow_default_options` may contain options of all Dataflow operators of a DAG. The google provider ignores all
# options except these fields of a classic template's environment.
_ENVIRONMENT_FIELDS: Final = frozenset(
    {
        "additionalExperiments",
        "additionalPipelineOptions",
        "additionalUserLabels",
        "bypassTempDirValidation",
        "diskSizeGb",
        "enableStreamingEngine",
        "ipConfiguration",
        "kmsKeyName",
        "machineType",
        "maxWorkers",
        "network",
        "numWorkers",
        "serviceAccountEmail",
        "streamingMode",
        "subnetwork",
        "tempLocation",
        "workerRegion",
        "workerZone",
        "zone",
    }
)


def given_once(name: str, value: Any, alias: str, alias_value: Any) -> Any:
    """Return the value of an argument that may also be given under the google provider's name.

    :raises InputError: if both arguments are given with different values.
    """
    if alias_value is None or alias_value == value:
        return value
    if value is not None:
        raise InputError(
            f"{alias}= is the google provider's name for {name}=, but the two have different values; remove {alias}="
        )
    return alias_value


def check_deferrable(deferrable: bool | None) -> None:
    """Ignore the argument `deferrable`, but refuse the value False.

    :raises InputError: if `deferrable` is False.
    """
    if deferrable is False:
        raise InputError(
            "deferrable=False is not possible, because the Triggerer does the whole work; remove deferrable="
        )


def refuse_cancel_timeout(cancel_timeout: Any) -> None:
    """Refuse the argument `cancel_timeout`.

    :raises InputError: if `cancel_timeout` is given. The error message shows which arguments to use instead.
    """
    if cancel_timeout is not None:
        raise InputError(
            "cancel_timeout= is not needed, because the library repeats the request to stop a job for up to a week; "
            "remove cancel_timeout=. To choose how the job is stopped, use on_kill= and on_timeout="
        )


def refuse_job_name() -> NoReturn:
    """Refuse the argument `job_name` of a sensor.

    :raises InputError: always. The error message shows which argument to use instead.
    """
    raise InputError(
        "job_name= does not select one job, because several jobs can have the same name; set job_id= instead, e.g. to "
        "the XCom job_id of the task that launches the job"
    )


def on_kill_of(on_kill: str | None, drain_pipeline: bool | None, cancel_on_kill: bool | None) -> str | None:
    """Return the value of `on_kill` for the google provider's arguments `drain_pipeline` and `cancel_on_kill`.

    :raises InputError: if `on_kill` is also given, but has a different meaning than the google provider's arguments.
    """
    if cancel_on_kill is False:
        return str(given_once("on_kill", on_kill, "cancel_on_kill", "leave"))
    return how_of("on_kill", on_kill, drain_pipeline)


def how_of(name: str, how: str | None, drain_pipeline: bool | None) -> str | None:
    """Return how to stop a job, for the google provider's argument `drain_pipeline`.

    :param name: the name of this library's argument, for the error message.
    :raises InputError: if both arguments are given with different values.
    """
    alias = None if drain_pipeline is None else "drain" if drain_pipeline else "cancel"
    value: str | None = given_once(name, how, "drain_pipeline", alias)
    return value


def states_of(expected_states: Any, expected_terminal_state: Any, expected_statuses: Any) -> Any:
    """Return the expected states as a list, from `expected_states` or from one of the google provider's arguments
    `expected_terminal_state` and `expected_statuses`.

    :raises InputError: if two of the three arguments are given with different values.
    """
    states = _as_list(expected_states)
    states = given_once(
        "expected_states", states, "expected_terminal_state", _as_list(expected_terminal_state)
    )
    return given_once("expected_states", states, "expected_statuses", _as_list(expected_statuses))


def _as_list(states: Any) -> Any:
    # A set is not a JSON value.
    if isinstance(states, str):
        return [states]
    return sorted(states, key=str) if isinstance(states, (set, frozenset, list, tuple)) else states


def environment_of(environment: Any, default_options: Any, options: Any) -> Any:
    """Return the environment of a classic template, merged with the google provider's arguments
    `dataflow_default_options` and `options`.

    :raises InputError: if one of the three arguments is not a dict, because only dicts can be merged.
    """
    if default_options is None and options is None:
        return environment
    given = {
        "environment": environment or {},
        "dataflow_default_options": default_options or {},
        "options": options or {},
    }
    for name, value in given.items():
        if not isinstance(value, Mapping):
            raise InputError(
                f"{name}= must be a dict, because environment=, dataflow_default_options= and options= are merged"
            )
    defaults = {
        key: value
        for key, value in given["dataflow_default_options"].items()
        if to_camel(key) in _ENVIRONMENT_FIELDS
    }
    merged: dict[str, Any] = {}
    for part in (given["environment"], defaults, given["options"]):
        merged |= {to_camel(key): value for key, value in part.items()}
    return merged
