"""Validates the arguments of a Dataflow task. Values without templates are checked when Airflow parses the DAG. Values
with templates are checked after Airflow has rendered the templates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from deferrable_ops.exceptions import InputError
from deferrable_ops.plain_data import require_serializable
from deferrable_ops.triggers.dataflow.request import (
    WAIT_LABEL,
    Kind,
    field_of,
    fixed_name,
    is_true,
    launch_parameters,
    name_prefix,
    to_camel,
    valid_prefix,
)
from deferrable_ops.triggers.dataflow.states import EXPECTED_STATES
from deferrable_ops.upstreams.dataflow.jobs import IMPORTANCES, STATE_NAMES

IsUnresolved = Callable[[Any], bool]
"""A function that returns whether a value contains an unresolved template. In the triggerer, all templates are
already resolved.
"""

ON_KILL: Final = ("cancel", "drain", "leave")
HOW_TO_STOP: Final = ("cancel", "drain")
RESULTS: Final = ("job", "id", "metrics")

_REGION = re.compile(r"[a-z]+(?:-[a-z]+)*[0-9]*")
_ZONE = re.compile(r"([a-z]+(?:-[a-z]+)+[0-9]+)-[a-z]")
_LABEL_KEY = re.compile(r"[^\W\d_][-\w]{0,62}")
_LABEL_VALUE = re.compile(r"[-\w]{0,63}")
_UPDATE_REFUSED: Final = (
    "update=True (or update: true in body=) replaces the running job with the same name, but each attempt of this "
    "task uses a different name; set append_job_name=False to keep the job's name, or remove update"
)
_CREATE_OR_UPDATE: Final = "create_or_update_job"
_EXPERIMENT_REFUSED: Final = (
    f"additionalExperiments in body= has {_CREATE_OR_UPDATE}, but update=True is not set, so a second job would start; "
    "set append_job_name=False and update=True to replace the running job, or remove the experiment"
)


def all_resolved(_value: Any) -> bool:
    """Return False: in a triggerer, no argument contains an unresolved template."""
    return False


def validate_launch(kind: Kind, arguments: Mapping[str, Any], task_id: str, unresolved: IsUnresolved) -> None:
    """Check the arguments of a task that launches a Dataflow job.

    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
    """
    _validate_job_wait(arguments, unresolved)
    _validate_choice("on_kill", arguments.get("when_killed"), ON_KILL, unresolved)
    _validate_choice("on_timeout", arguments.get("on_timeout"), ON_KILL, unresolved)
    _validate_labels("labels", arguments.get("labels"), unresolved)
    given, body = arguments.get("job_name"), arguments.get("body")
    if given is not None and not unresolved(given) and not isinstance(given, str):
        raise InputError(f"job_name= must be a string, not {_type_name(given)}")
    if not unresolved(body):
        _validate_body(kind, body, arguments, unresolved)
        _validate_update(launch_parameters(body), arguments, unresolved)
    prefix = name_prefix(given, body, task_id)
    if not unresolved(prefix) and not (given is None and unresolved(body)):
        (valid_prefix if arguments.get("append_job_name", True) else fixed_name)(str(prefix))


def validate_sensor(arguments: Mapping[str, Any], unresolved: IsUnresolved) -> None:
    """Check the arguments of a task that waits for an existing Dataflow job.

    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
    """
    _validate_job_wait(arguments, unresolved)
    _validate_job_id(arguments.get("job_id"), unresolved)


def validate_stop(arguments: Mapping[str, Any], unresolved: IsUnresolved) -> None:
    """Check the arguments of a task that stops Dataflow jobs.

    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
    """
    _validate_target(arguments, unresolved)
    _validate_choice("how", arguments.get("how"), HOW_TO_STOP, unresolved)
    job_id, prefix = arguments.get("job_id"), arguments.get("job_name_prefix")
    if (job_id is None) == (prefix is None):
        raise InputError(
            "job_id= and job_name_prefix= are both set or both missing; give either job_id= or job_name_prefix=, to "
            "select the jobs to stop"
        )
    if job_id is not None:
        _validate_job_id(job_id, unresolved)
    elif not unresolved(prefix) and (not isinstance(prefix, str) or not prefix.strip()):
        raise InputError(
            f"job_name_prefix={prefix!r} would stop every job of the region; set how the names of the jobs begin"
        )


def _validate_choice(name: str, value: Any, choices: tuple[str, ...], unresolved: IsUnresolved) -> None:
    if value is not None and not unresolved(value) and value not in choices:
        raise InputError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")


def _validate_job_wait(arguments: Mapping[str, Any], unresolved: IsUnresolved) -> None:
    _validate_target(arguments, unresolved)
    _validate_choice("expected_state", arguments.get("expected_state"), EXPECTED_STATES, unresolved)
    _validate_expected_states(arguments, unresolved)
    _validate_choice("result", arguments.get("result"), RESULTS, unresolved)
    _validate_choice("log_messages", arguments.get("log_messages"), IMPORTANCES, unresolved)


def _validate_expected_states(arguments: Mapping[str, Any], unresolved: IsUnresolved) -> None:
    states = arguments.get("expected_states")
    if states is None or unresolved(states):
        return
    if arguments.get("expected_state") is not None:
        raise InputError("expected_states= and expected_state= are both given; remove expected_state=")
    example = "expected_states={'JOB_STATE_DONE', 'JOB_STATE_CANCELLED'}"
    if not isinstance(states, (list, tuple)) or not states:
        raise InputError(f"expected_states= must be a set of the API's names for job states, e.g. {example}")
    for state in states:
        if not unresolved(state) and state not in STATE_NAMES:
            raise InputError(
                f"expected_states= has {state!r}, which is no job state in the Dataflow API; set e.g. {example}"
            )


def _validate_target(arguments: Mapping[str, Any], unresolved: IsUnresolved) -> None:
    project_id, region = arguments.get("project_id"), arguments.get("region", "")
    if project_id is not None and not unresolved(project_id) and not _is_text(project_id):
        raise InputError(
            f"project_id={project_id!r} is not a project; set e.g. project_id='my-project', or remove project_id= to "
            "use the project of the credentials"
        )
    if not unresolved(region) and not _is_text(region):
        raise InputError("region= is missing; set it, e.g. region='europe-west1'")
    if not unresolved(region) and not _REGION.fullmatch(region):
        zone = _ZONE.fullmatch(region)
        hint = f"it is a zone; set region={zone[1]!r}" if zone else "set e.g. region='europe-west1'"
        raise InputError(f"region={region!r} is not a region; {hint}")
    conn_id = arguments.get("gcp_conn_id")
    if conn_id is not None and not unresolved(conn_id) and not (isinstance(conn_id, str) and conn_id):
        raise InputError("gcp_conn_id= must be the id of an Airflow connection, e.g. 'google_cloud_default'")
    chain = arguments.get("impersonation_chain")
    accounts = [chain] if isinstance(chain, str) else chain
    if chain is None or unresolved(chain):
        return
    if not isinstance(accounts, (list, tuple)) or not all(
        unresolved(account) or (isinstance(account, str) and account) for account in accounts
    ):
        raise InputError(
            "impersonation_chain= must be the email address of a service account, or a list of such addresses; the "
            "task uses the permissions of the last account"
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _validate_job_id(job_id: Any, unresolved: IsUnresolved) -> None:
    if not unresolved(job_id) and (not isinstance(job_id, str) or not job_id.strip()):
        raise InputError(
            f"job_id={job_id!r} is not a job's id such as '2026-01-01_00_00_00-1234'; give the job's id, which "
            "the task that launched the job has set as the XCom job_id"
        )


def _validate_body(kind: Kind, body: Any, arguments: Mapping[str, Any], unresolved: IsUnresolved) -> None:
    if not isinstance(body, Mapping):
        raise InputError(f"body= must be a dict with the API's launch parameters, not {_type_name(body)}")
    require_serializable("body", body)
    for name, argument in (("projectId", "project_id"), ("location", "region")):
        own, given = field_of(body, name), arguments.get(argument)
        if own is not None and not unresolved(own) and not unresolved(given) and own != given:
            raise InputError(
                f"body= has {name} {own!r}, but {argument}= is {given!r}; remove {name} from body="
            )
    if field_of(body, "validateOnly"):
        raise InputError(
            "body= has validateOnly, with which Dataflow launches no job; remove validateOnly, because this task "
            "waits for a job"
        )
    parameters = launch_parameters(body)
    if unresolved(parameters):
        return
    if not isinstance(parameters, Mapping):
        raise InputError(f"the launch parameters in body= must be a dict, not {_type_name(parameters)}")
    _validate_parameters(parameters, unresolved)
    if kind == "flex":
        _validate_flex_template(parameters, unresolved)
    else:
        _validate_classic_template(body, unresolved)


def _validate_parameters(parameters: Mapping[str, Any], unresolved: IsUnresolved) -> None:
    names = [to_camel(key) for key in parameters]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"body= has {twice} twice, in camelCase and in snake_case; remove one of them")
    _validate_strings("parameters", field_of(parameters, "parameters"), unresolved)
    _validate_strings("launchOptions", field_of(parameters, "launchOptions"), unresolved)
    environment = field_of(parameters, "environment")
    if environment is not None and not unresolved(environment):
        if not isinstance(environment, Mapping):
            raise InputError(f"body['environment'] must be a dict, not {_type_name(environment)}")
        _validate_labels("additionalUserLabels", field_of(environment, "additionalUserLabels"), unresolved)


def _validate_update(parameters: Any, arguments: Mapping[str, Any], unresolved: IsUnresolved) -> None:
    in_body, mapping = field_of(parameters, "update"), arguments.get("transform_name_mapping")
    updates = is_true(arguments.get("update")) or (not unresolved(in_body) and is_true(in_body))
    keeps_name = not arguments.get("append_job_name", True)
    if updates and not keeps_name:
        raise InputError(_UPDATE_REFUSED)
    if mapping is not None and not updates and not unresolved(in_body):
        raise InputError(
            "transform_name_mapping= is for update=True only; set update=True, or remove transform_name_mapping="
        )
    _validate_strings("transform_name_mapping", mapping, unresolved)
    experiments = field_of(field_of(parameters, "environment"), "additionalExperiments")
    if isinstance(experiments, (list, tuple)) and _CREATE_OR_UPDATE in experiments and not updates:
        raise InputError(_EXPERIMENT_REFUSED)


def _validate_flex_template(parameters: Mapping[str, Any], unresolved: IsUnresolved) -> None:
    path = field_of(parameters, "containerSpecGcsPath")
    if path is None and field_of(parameters, "containerSpec") is None:
        raise InputError("body= has no template; add containerSpecGcsPath, e.g. 'gs://bucket/template.json'")
    if path is not None:
        _require_gs_path("body['containerSpecGcsPath']", path, unresolved)


def _validate_classic_template(body: Mapping[str, Any], unresolved: IsUnresolved) -> None:
    if field_of(body, "dynamicTemplate") is None:
        _require_gs_path("template=", field_of(body, "gcsPath"), unresolved)


def _require_gs_path(name: str, path: Any, unresolved: IsUnresolved) -> None:
    if not unresolved(path) and not (isinstance(path, str) and path.startswith("gs://")):
        raise InputError(
            f"{name} must be a path in Cloud Storage such as 'gs://bucket/template', not {path!r}"
        )


def _validate_strings(name: str, values: Any, unresolved: IsUnresolved) -> None:
    if values is None or unresolved(values):
        return
    if not isinstance(values, Mapping):
        raise InputError(f"{name}= must be a dict of strings, not {_type_name(values)}")
    for key, value in values.items():
        if not unresolved(value) and not isinstance(value, (str, bool, int, float)):
            raise InputError(
                f"{name}[{key!r}] is {_type_name(value)}, but Dataflow accepts only strings; "
                "write the value as a string in the format that the template expects"
            )


def _validate_labels(name: str, labels: Any, unresolved: IsUnresolved) -> None:
    if labels is None or unresolved(labels):
        return
    if not isinstance(labels, Mapping):
        raise InputError(
            f"{name}= must be a dict of strings such as {{'team': 'data'}}, not {_type_name(labels)}"
        )
    for key, value in labels.items():
        if key == WAIT_LABEL:
            raise InputError(
                f"{name}= has the key {WAIT_LABEL}, but this library sets the label with this key; use another key"
            )
        if not unresolved(key) and not _is_label(key, _LABEL_KEY):
            raise InputError(
                f"{name}= has the key {key!r}, which is not valid; use up to 63 lower-case letters, digits, hyphens "
                "and underscores, and begin with a letter"
            )
        if not unresolved(value) and not _is_label(value, _LABEL_VALUE):
            raise InputError(
                f"{name}[{key!r}] is {value!r}, which is not valid; use a string of up to 63 lower-case letters, "
                "digits, hyphens and underscores"
            )


def _is_label(text: Any, form: re.Pattern[str]) -> bool:
    return isinstance(text, str) and form.fullmatch(text) is not None and text == text.lower()


def _type_name(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
