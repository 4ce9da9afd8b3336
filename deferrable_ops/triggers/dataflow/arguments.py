"""What is wrong with the arguments of a Dataflow task: at parse time of all that is written out, later of the rest."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from deferrable_ops.exceptions import InputError
from deferrable_ops.plain_data import require_serializable
from deferrable_ops.triggers.dataflow.request import (
    WAIT_LABEL,
    Kind,
    camel,
    field_of,
    launch_parameters,
    name_prefix,
    valid_prefix,
)
from deferrable_ops.triggers.dataflow.states import EXPECTED_STATES
from deferrable_ops.upstreams.dataflow.jobs import IMPORTANCES

Later = Callable[[Any], bool]
"""Says which values are not known yet: templates at parse time, none in the triggerer."""

ON_KILL: Final = ("cancel", "drain", "leave")
HOW_TO_STOP: Final = ("cancel", "drain")

_REGION = re.compile(r"[a-z]+(?:-[a-z]+)*[0-9]*")  # there are 40, and more each year
_ZONE = re.compile(r"([a-z]+(?:-[a-z]+)+[0-9]+)-[a-z]")
_LABEL_KEY = re.compile(r"[^\W\d_][-\w]{0,62}")
_LABEL_VALUE = re.compile(r"[-\w]{0,63}")
_UPDATE_REFUSED: Final = (
    "body= says update: true, which replaces the running job of the same name; but a job that this task launches has "
    "the attempt in its name, so that it is launched once. Leave update out; to update a job, run "
    "`gcloud dataflow flex-template run --update` and wait for it with DataflowJobSensor"
)


def known_now(_value: Any) -> bool:
    """Return that a value is known: in the triggerer all of them are."""
    return False


def validate_launch(kind: Kind, arguments: Mapping[str, Any], task_id: str, later: Later) -> None:
    """Check the arguments of a launch.

    :raises InputError: one is wrong; the message names it and the fix.
    """
    _validate_following(arguments, later)
    _validate_choice("on_kill", arguments.get("when_killed"), ON_KILL, later)
    _validate_labels("labels", arguments.get("labels"), later)
    given, body = arguments.get("job_name"), arguments.get("body")
    if given is not None and not later(given) and not isinstance(given, str):
        raise InputError(f"job_name= must be a string; it is {_of_type(given)}")
    if not later(body):
        _validate_body(kind, body, arguments, later)
    prefix = name_prefix(given, body, task_id)
    if not later(prefix) and not (given is None and later(body)):
        valid_prefix(str(prefix))


def validate_sensor(arguments: Mapping[str, Any], later: Later) -> None:
    """Check the arguments of a wait for a job that exists.

    :raises InputError: one is wrong; the message names it and the fix.
    """
    _validate_following(arguments, later)
    _validate_job_id(arguments.get("job_id"), later)


def validate_stop(arguments: Mapping[str, Any], later: Later) -> None:
    """Check the arguments of a stop.

    :raises InputError: one is wrong; the message names it and the fix.
    """
    _validate_place(arguments, later)
    _validate_choice("how", arguments.get("how"), HOW_TO_STOP, later)
    job_id, prefix = arguments.get("job_id"), arguments.get("job_name_prefix")
    if (job_id is None) == (prefix is None):
        raise InputError(
            "give either job_id= or job_name_prefix=: say which job is to be stopped, or which ones"
        )
    if job_id is not None:
        _validate_job_id(job_id, later)
    elif not later(prefix) and (not isinstance(prefix, str) or not prefix.strip()):
        raise InputError(
            f"job_name_prefix={prefix!r} would stop every job of the region; name the jobs' beginning"
        )


def _validate_choice(name: str, value: Any, choices: tuple[str, ...], later: Later) -> None:
    if value is not None and not later(value) and value not in choices:
        raise InputError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")


def _validate_following(arguments: Mapping[str, Any], later: Later) -> None:
    _validate_place(arguments, later)
    _validate_choice("expected_state", arguments.get("expected_state"), EXPECTED_STATES, later)
    _validate_choice("log_messages", arguments.get("log_messages"), IMPORTANCES, later)


def _validate_place(arguments: Mapping[str, Any], later: Later) -> None:
    for name, example in (("project_id", "my-project"), ("region", "europe-west1")):
        value = arguments.get(name)
        if not later(value) and (not isinstance(value, str) or not value.strip()):
            raise InputError(f"{name}= is missing; say {name}={example!r}")
    region = arguments["region"]
    if not later(region) and not _REGION.fullmatch(region):
        zone = _ZONE.fullmatch(region)
        hint = f"that is a zone, whose region is {zone[1]!r}" if zone else "say region='europe-west1'"
        raise InputError(f"region={region!r} is not a region; {hint}")
    conn_id = arguments.get("gcp_conn_id")
    if conn_id is not None and not later(conn_id) and not (isinstance(conn_id, str) and conn_id):
        raise InputError("gcp_conn_id= must be the name of an Airflow connection, as 'google_cloud_default'")
    chain = arguments.get("impersonation_chain")
    accounts = [chain] if isinstance(chain, str) else chain
    if chain is None or later(chain):
        return
    if not isinstance(accounts, (list, tuple)) or not all(
        later(account) or (isinstance(account, str) and account) for account in accounts
    ):
        raise InputError(
            "impersonation_chain= must be the address of a service account, or a list of them, the last one acting"
        )


def _validate_job_id(job_id: Any, later: Later) -> None:
    if not later(job_id) and (not isinstance(job_id, str) or not job_id.strip()):
        raise InputError(
            f"job_id={job_id!r} is not a job's id, as '2026-01-01_00_00_00-1234'; a task that launches one has its id "
            "as XCom job_id"
        )


def _validate_body(kind: Kind, body: Any, arguments: Mapping[str, Any], later: Later) -> None:
    if not isinstance(body, Mapping):
        raise InputError(f"body= must be a dict, the API's launch parameters; it is {_of_type(body)}")
    require_serializable("body", body)
    for name, argument in (("projectId", "project_id"), ("location", "region")):
        own, given = field_of(body, name), arguments.get(argument)
        if own is not None and not later(own) and not later(given) and own != given:
            raise InputError(f"body= has {name} {own!r}, and {argument}= is {given!r}; leave it out of body=")
    if field_of(body, "validateOnly"):
        raise InputError("body= says validateOnly, which launches no job to wait for; leave it out")
    parameters = launch_parameters(body)
    if later(parameters):
        return
    if not isinstance(parameters, Mapping):
        raise InputError(f"body= has launch parameters that must be a dict; they are {_of_type(parameters)}")
    _validate_parameters(parameters, later)
    if kind == "flex":
        _validate_flex_template(parameters, later)
    else:
        _validate_classic_template(body, later)


def _validate_parameters(parameters: Mapping[str, Any], later: Later) -> None:
    names = [camel(key) for key in parameters]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"body= has {twice} twice, in camelCase and in snake_case; keep one of them")
    update = field_of(parameters, "update")
    if not later(update) and update not in (None, False, "", "false", "False"):
        raise InputError(_UPDATE_REFUSED)
    _validate_texts("parameters", field_of(parameters, "parameters"), later)
    _validate_texts("launchOptions", field_of(parameters, "launchOptions"), later)
    environment = field_of(parameters, "environment")
    if environment is not None and not later(environment):
        if not isinstance(environment, Mapping):
            raise InputError(f"body['environment'] must be a dict; it is {_of_type(environment)}")
        _validate_labels("additionalUserLabels", field_of(environment, "additionalUserLabels"), later)


def _validate_flex_template(parameters: Mapping[str, Any], later: Later) -> None:
    path = field_of(parameters, "containerSpecGcsPath")
    if path is None and field_of(parameters, "containerSpec") is None:
        raise InputError("body= names no template; give containerSpecGcsPath, as 'gs://bucket/template.json'")
    if path is not None:
        _require_gs_path("body['containerSpecGcsPath']", path, later)


def _validate_classic_template(body: Mapping[str, Any], later: Later) -> None:
    if field_of(body, "dynamicTemplate") is None:
        _require_gs_path("template=", field_of(body, "gcsPath"), later)


def _require_gs_path(name: str, path: Any, later: Later) -> None:
    if not later(path) and not (isinstance(path, str) and path.startswith("gs://")):
        raise InputError(f"{name} must be a path in Cloud Storage, as 'gs://bucket/template'; it is {path!r}")


def _validate_texts(name: str, values: Any, later: Later) -> None:
    if values is None or later(values):
        return
    if not isinstance(values, Mapping):
        raise InputError(f"{name}= must be a dict of strings; it is {_of_type(values)}")
    for key, value in values.items():
        if not later(value) and not isinstance(value, (str, bool, int, float)):
            raise InputError(
                f"{name}[{key!r}] is {_of_type(value)}, and Dataflow takes strings only; "
                "write it as the template reads it"
            )


def _validate_labels(name: str, labels: Any, later: Later) -> None:
    if labels is None or later(labels):
        return
    if not isinstance(labels, Mapping):
        raise InputError(
            f"{name}= must be a dict of strings, as {{'team': 'data'}}; it is {_of_type(labels)}"
        )
    for key, value in labels.items():
        if key == WAIT_LABEL:
            raise InputError(f"{name}= has {WAIT_LABEL}, by which this library knows its own jobs; rename it")
        if not later(key) and not _is_label(key, _LABEL_KEY):
            raise InputError(
                f"{name}= has the key {key!r}; a label's key is a lower-case letter and up to 62 lower-case letters, "
                "digits, hyphens and underscores"
            )
        if not later(value) and not _is_label(value, _LABEL_VALUE):
            raise InputError(
                f"{name}[{key!r}] is {value!r}; a label's value is a string of up to 63 lower-case letters, digits, "
                "hyphens and underscores"
            )


def _is_label(text: Any, form: re.Pattern[str]) -> bool:
    return isinstance(text, str) and form.fullmatch(text) is not None and text == text.lower()


def _of_type(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
