"""Builds the request that launches a Dataflow job, with the job's name and labels. The functions of this module do no
I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final, Literal

from deferrable_ops.exceptions import InputError
from deferrable_ops.inbox import Attempt

Kind = Literal["flex", "classic"]

WAIT_LABEL: Final = "deferrable-ops-wait"
"""The key of a label on each job. The value of this label is the id of the wait that launched the job."""

_NAME_LENGTH: Final = 63
_LABEL_LENGTH: Final = 63
_HASH_LENGTH: Final = 12
_NAME = re.compile(r"[a-z](?:[-a-z0-9]*[a-z0-9])?")
_PARAMETERS: Final = {"flex": "launchParameter", "classic": "launchParameters"}
_OVERWRITTEN: Final = frozenset(
    {"projectId", "location", "validateOnly", "launchParameter", "launchParameters"}
)


def job_name(prefix: str, wait_id: str) -> str:
    """Return the name of a Dataflow job: the valid form of the prefix, followed by a hash of the task attempt.

    :raises InputError: if the prefix contains characters that a job's name must not contain.
    """
    digest = sha256(wait_id.encode()).hexdigest()[:_HASH_LENGTH]
    return f"{valid_prefix(prefix)}-{digest}"


def fixed_name(name: str) -> str:
    """Return the valid form of a job name. The jobs of all attempts of the task have this name.

    :raises InputError: if the name is too long, or contains characters that a job's name must not contain.
    """
    if len(name.strip()) > _NAME_LENGTH:
        raise InputError(
            f"job_name= is {name!r}, which has more than {_NAME_LENGTH} characters; set a shorter job_name=, because "
            "append_job_name=False does not shorten it"
        )
    return valid_prefix(name, _NAME_LENGTH)


def valid_prefix(prefix: str, length: int = _NAME_LENGTH - _HASH_LENGTH - 1) -> str:
    """Return the prefix of a job's name in lower case, with hyphens instead of ``_``, ``.`` and blanks.

    :param length: the maximum number of characters, by default 50. A longer prefix is cut off.
    :raises InputError: if the prefix contains characters that a job's name must not contain.
    """
    lowered = re.sub(r"[_.\s]", "-", prefix.strip().lower())
    short = lowered[:length].rstrip("-")
    if not _NAME.fullmatch(short):
        raise InputError(
            f"job_name= (by default the task's id) is {prefix!r}, which is not valid in the name of a Dataflow job; "
            "set a job_name= that begins with a letter from a to z, and contains only letters from a to z, digits and "
            "hyphens"
        )
    return short


def name_prefix(given: str | None, body: Any, task_id: str) -> Any:
    """Return the prefix of the job's name, which is `given`. Without `given`, the prefix is the job name in the body.
    If the body has no job name, the prefix is the task's id.
    """
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
    task_labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the whole launch request: the body with the job's name and labels, and with field names in camelCase.

    :param task_labels: further labels. A label with the same key in the body or in `labels` replaces such a label.
    """
    parameters = dict(launch_parameters(body))
    environment = dict(_pop_field(parameters, "environment") or {})
    body_labels = _pop_field(environment, "additionalUserLabels") or {}
    environment["additionalUserLabels"] = {
        **(task_labels or {}),
        **body_labels,
        **(labels or {}),
        WAIT_LABEL: wait_id,
    }
    for overwritten in ("jobName", "update"):
        _pop_field(parameters, overwritten)
    for string_field in ("parameters", "launchOptions"):
        values = _pop_field(parameters, string_field)
        if values is not None:
            parameters[string_field] = {key: _as_string(value) for key, value in values.items()}
    rest = {key: value for key, value in body.items() if to_camel(key) not in _OVERWRITTEN}
    if not _is_whole_request(body):
        rest = {"gcsPath": _pop_field(parameters, "gcsPath")} if kind == "classic" else {}
    parameters |= {"jobName": name, "environment": environment}
    return {**rest, "projectId": project_id, "location": region, _PARAMETERS[kind]: parameters}


def update_request(kind: Kind, request: dict[str, Any], mapping: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the request that replaces the running job with the same name.

    :param request: the request that launches the job, from :func:`build_request`.
    :param mapping: the new names of the pipeline's renamed transforms. The keys are the names of these transforms in
        the running job.
    """
    name = _PARAMETERS[kind]
    field = "transformNameMappings" if kind == "flex" else "transformNameMapping"
    parameters = dict(request[name])
    if mapping:
        _pop_field(parameters, field)
        parameters[field] = dict(mapping)
    return {**request, name: parameters | {"update": True}}


def is_true(value: Any) -> bool:
    """Return whether the value of an argument, or of a field of a body, means true. A value from a template is a
    string, such as "False".
    """
    return value not in (None, False, "", "false", "False")


def task_labels(attempt: Attempt) -> dict[str, str]:
    """Return labels with the ids of the DAG, the task and the DAG run. Google Cloud can report costs by labels."""
    ids = {"airflow-dag": attempt.dag_id, "airflow-task": attempt.task_id, "airflow-run": attempt.run_id}
    return {key: re.sub(r"[^-_a-z0-9]", "-", value.lower())[:_LABEL_LENGTH] for key, value in ids.items()}


def classic_body(body: Any, given: dict[str, Any]) -> Any:
    """Return the body of a launch request for a classic template, merged with arguments of the operator.

    :param given: arguments of the operator; the keys are the API's field names in camelCase.
    :raises InputError: if a field is given both in the body and as an argument, or the body cannot be merged with
        arguments.
    """
    if body is None:
        return given
    if not isinstance(body, Mapping):
        if given:
            raise InputError(
                "body= is not a dict, so template=, parameters= and environment= cannot be added to body=; "
                "write body= as a dict"
            )
        return body
    if given and any(field_of(body, name) is not None for name in ("launchParameters", "launchParameter")):
        raise InputError(
            "body= is a complete launch request, so no arguments can be added to body=; move template=, parameters= "
            "and environment= into body="
        )
    twice = next((name for name in given if field_of(body, name) is not None), None)
    if twice is not None:
        name = "template" if twice == "gcsPath" else twice
        raise InputError(f"{name}= is an argument and also in body=; remove {twice} from body=")
    return {**body, **given}


def launch_parameters(body: Any) -> Any:
    """Return the launch parameters. If the body is a whole launch request, the launch parameters are one field of the
    body; otherwise the launch parameters are the whole body.
    """
    if not _is_whole_request(body):
        return body
    return field_of(body, "launchParameter") or field_of(body, "launchParameters") or {}


def field_of(mapping: Any, name: str) -> Any:
    """Return a field of an API object, or None if the field is missing.

    :param name: the field's name in camelCase. In `mapping`, the name may be in camelCase or in snake_case.
    """
    if not isinstance(mapping, Mapping):
        return None
    return next((value for key, value in mapping.items() if to_camel(key) == name), None)


def to_camel(key: Any) -> str:
    """Return a field name in camelCase."""
    first, *others = str(key).split("_")
    return first + "".join(other[:1].upper() + other[1:] for other in others)


def _is_whole_request(body: Any) -> bool:
    return isinstance(body, Mapping) and any(to_camel(key) in _PARAMETERS.values() for key in body)


def _as_string(value: Any) -> Any:
    # Dataflow accepts only strings. But if a worker renders native objects, the values may be numbers.
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (int, float)) else value


def _pop_field(mapping: dict[str, Any], name: str) -> Any:
    key = next((key for key in mapping if to_camel(key) == name), None)
    return None if key is None else mapping.pop(key)
