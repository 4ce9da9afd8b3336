"""The request that launches a job: its name, its labels, and what else the user wrote of it. Nothing here does I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final, Literal

from deferrable_ops.exceptions import InputError

Kind = Literal["flex", "classic"]

WAIT_LABEL: Final = "deferrable-ops-wait"
"""The label by which a job is known to be a wait's own."""

_NAME_LENGTH: Final = 63
_HASH_LENGTH: Final = 12
_NAME = re.compile(r"[a-z](?:[-a-z0-9]*[a-z0-9])?")
_PARAMETERS: Final = {"flex": "launchParameter", "classic": "launchParameters"}
_SET_HERE: Final = frozenset({"projectId", "location", "validateOnly", "launchParameter", "launchParameters"})


def job_name(prefix: str, wait_id: str) -> str:
    """Return the name of a wait's job: the prefix, made valid where that is safe, and a hash of the attempt.

    :raises InputError: the prefix cannot be made valid.
    """
    digest = sha256(wait_id.encode()).hexdigest()[:_HASH_LENGTH]
    return f"{valid_prefix(prefix)}-{digest}"


def valid_prefix(prefix: str) -> str:
    """Return what a job's name begins with, at most 50 characters.

    :raises InputError: the prefix cannot be made valid.
    """
    lowered = re.sub(r"[_.\s]", "-", prefix.strip().lower())
    short = lowered[: _NAME_LENGTH - _HASH_LENGTH - 1].rstrip("-")
    if not _NAME.fullmatch(short):
        raise InputError(
            f"job_name= (by default the task's id) is {prefix!r}, which cannot begin the name of a Dataflow job: that "
            "begins with a letter from a to z, and holds only such letters, digits and hyphens; give another job_name="
        )
    return short


def name_prefix(given: str | None, body: Any, task_id: str) -> Any:
    """Return what the name is made of: the argument `job_name`, else the body's job name, else the task's id."""
    return given or field_of(launch_parameters(body), "jobName") or task_id


def build_request(
    kind: Kind,
    *,
    project_id: str,
    region: str,
    body: Mapping[str, Any],
    name: str,
    labels: Mapping[str, str] | None,
    wait_id: str,
) -> dict[str, Any]:
    """Return the whole launch request: the body, with its name and labels in the API's camelCase."""
    parameters = dict(launch_parameters(body))
    environment = dict(_take(parameters, "environment") or {})
    own_labels = _take(environment, "additionalUserLabels") or {}
    environment["additionalUserLabels"] = {**own_labels, **(labels or {}), WAIT_LABEL: wait_id}
    for set_here in ("jobName", "update"):
        _take(parameters, set_here)
    for name_of_texts in ("parameters", "launchOptions"):
        values = _take(parameters, name_of_texts)
        if values is not None:
            parameters[name_of_texts] = {key: _as_text(value) for key, value in values.items()}
    rest = {key: value for key, value in body.items() if camel(key) not in _SET_HERE}
    if not _is_whole_request(body):
        rest = {"gcsPath": _take(parameters, "gcsPath")} if kind == "classic" else {}
    parameters |= {"jobName": name, "environment": environment}
    return {**rest, "projectId": project_id, "location": region, _PARAMETERS[kind]: parameters}


def classic_body(body: Any, given: dict[str, Any]) -> Any:
    """Return the body of a classic launch, with what the operator's own arguments say of it.

    :param given: fields of the API's by their names in camelCase.
    :raises InputError: both say the same, or they cannot be put together.
    """
    if body is None:
        return given
    if not isinstance(body, Mapping):
        if given:
            raise InputError(
                "template=, parameters= and environment= go with a body= that is written out as a dict"
            )
        return body
    if given and any(field_of(body, name) is not None for name in ("launchParameters", "launchParameter")):
        raise InputError("body= is a whole request; write template=, parameters= and environment= into it")
    twice = next((name for name in given if field_of(body, name) is not None), None)
    if twice is not None:
        name = "template" if twice == "gcsPath" else twice
        raise InputError(f"{name}= is given twice: leave {twice} out of body=")
    return {**body, **given}


def launch_parameters(body: Any) -> Any:
    """Return a body's launch parameters: the body itself, or what it holds of them when it is a whole request."""
    if not _is_whole_request(body):
        return body
    return field_of(body, "launchParameter") or field_of(body, "launchParameters") or {}


def field_of(mapping: Any, name: str) -> Any:
    """Return a field of the API's, written in camelCase or in snake_case; None where there is none.

    :param name: the field's name in camelCase.
    """
    if not isinstance(mapping, Mapping):
        return None
    return next((value for key, value in mapping.items() if camel(key) == name), None)


def camel(key: Any) -> str:
    """Return a field's name in camelCase."""
    first, *others = str(key).split("_")
    return first + "".join(other[:1].upper() + other[1:] for other in others)


def _is_whole_request(body: Any) -> bool:
    return isinstance(body, Mapping) and any(camel(key) in _PARAMETERS.values() for key in body)


def _as_text(value: Any) -> Any:
    # Dataflow takes strings only; a worker that renders native objects makes numbers of them.
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (int, float)) else value


def _take(mapping: dict[str, Any], name: str) -> Any:
    key = next((key for key in mapping if camel(key) == name), None)
    return None if key is None else mapping.pop(key)
