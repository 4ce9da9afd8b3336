"""Validates the arguments of a Supervisor, and applies them to the configuration of the supervisord."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from airflow.sdk import DAG, BaseOperator
from airflow.sdk.definitions._internal.contextmanager import TaskGroupContext
from pydantic import ValidationError

from deferrable_ops.exceptions import InputError
from deferrable_ops.supervisord import (
    SSHOperatorArgs,
    SupervisorAirflowConfiguration,
    SupervisorSSHAirflowConfiguration,
)
from deferrable_ops.supervisord.defaults import DEFAULT_NAME, given_working_dir
from deferrable_ops.triggers.supervisor.configuration import START_STEPS, TEARDOWN_STEPS

C = TypeVar("C", bound=SupervisorAirflowConfiguration)

CHECK: Final = "check-programs"
FORCE_KILL: Final = "force-kill"
REPLACEABLE_STEPS: Final = (*START_STEPS, CHECK, "restart-programs", *TEARDOWN_STEPS, FORCE_KILL)

REMOTE_ARGUMENTS: Final = (*SSHOperatorArgs.model_fields, "command_prefix")

_FIRST_TASK_ARGUMENTS: Final = ("trigger_rule", "depends_on_past", "wait_for_downstream")
_SINGLE_TASK_ARGUMENTS: Final = frozenset(
    {"dag", "task_id", "task_display_name", "inlets", "outlets", "params"}
)
_OPERATOR_ARGUMENTS: Final = frozenset(inspect.signature(BaseOperator.__init__).parameters) - {
    "self",
    "kwargs",
}


def parse_configuration(kind: type[C], given: Any) -> C:
    """Return the value of ``cfg=`` as a configuration of the class `kind`.

    :param given: a configuration, or a dict with its fields.
    :raises InputError: if the value is invalid, or is a configuration of another class.
    """
    if given is None:
        raise InputError(f"cfg= is missing; give a {kind.__name__}, or a dict with its fields")
    if isinstance(given, kind):
        # A configuration for SSH describes another machine, so it cannot be used for a local supervisord.
        if isinstance(given, SupervisorSSHAirflowConfiguration) and not issubclass(
            kind, SupervisorSSHAirflowConfiguration
        ):
            raise InputError("cfg= is a configuration for SSH; use SupervisorSSH")
        return given
    if isinstance(given, SupervisorAirflowConfiguration):
        given = given.given_fields
    if not isinstance(given, Mapping):
        raise InputError(
            f"cfg= is a {type(given).__name__}; give a {kind.__name__}, or a dict with its fields"
        )
    return _validate(kind, dict(given))


def override_remote(cfg: C, host: str | None, port: int | str | None, own: Mapping[str, Any]) -> C:
    """Return an SSH configuration in which the given arguments replace fields of `cfg`.

    :param host: name of the machine; None keeps the host of `cfg`.
    :param port: port of supervisord's inet server; None keeps the port of `cfg`.
    :param own: arguments for fields of SSHOperatorArgs, and ``command_prefix``. Arguments that are None are ignored.
    :raises InputError: if a value is invalid.
    """
    given = {name: value for name, value in own.items() if value is not None}
    if host is not None:
        if given.get("remote_host") not in (None, host):
            raise InputError(
                f"host={host!r} and remote_host={given['remote_host']!r} differ; give one of them"
            )
        given["remote_host"] = host
    if not given and port is None:
        return cfg
    data = cfg.given_fields
    if "command_prefix" in given:
        data["command_prefix"] = given.pop("command_prefix")
    if given:
        ssh = data.get("ssh_operator_args", SSHOperatorArgs())
        data["ssh_operator_args"] = ssh.model_dump(exclude_unset=True) | given
    if port is not None:
        data["airflow"] = cfg.airflow.model_dump(exclude_unset=True) | {"port": port}
    return _validate(type(cfg), data)


def with_working_dir(cfg: C, dag: DAG, name: str, task_group: Any = None) -> C:
    """Return the configuration with a working directory for supervisord.

    If the configuration has no working directory, add a directory whose name contains the DAG's id. Names of programs
    would not be suitable: two DAGs with the same programs would share one directory. If a program was renamed while
    supervisord runs, the tasks would no longer find the directory of supervisord.

    :param name: name of the Supervisor.
    :param task_group: the TaskGroup of the tasks; by default the TaskGroup of the surrounding ``with``.
    :raises InputError: if the path of the directory is too long for supervisord's Unix socket in this directory.
    """
    if given_working_dir(cfg) is not None:
        return cfg
    group = task_group or TaskGroupContext.get_current(dag)
    prefix = name if group is None else group.child_id(name)
    # No id contains a "+", so two different pairs of ids never give the same name.
    whole = dag.dag_id if prefix == dag.dag_id else f"{dag.dag_id}+{prefix}"
    return _validate(type(cfg), cfg.given_fields, {DEFAULT_NAME: whole})


def parse_steps(given: Mapping[str, Any]) -> dict[str, BaseOperator]:
    """Return the tasks that replace steps of a Supervisor, by name of the step.

    :raises InputError: if a key is not the name of a step, or a value is not a task.
    """
    return {_step_name(name): _task(name, task) for name, task in given.items()}


def split_task_arguments(given: Mapping[str, Any], pool: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments for all tasks, and the arguments that only the first task gets.

    :param pool: the pool in the configuration; the argument ``pool`` takes precedence over it.
    :raises InputError: if an argument is unknown, or must be set on one task and not on all tasks.
    """
    for name in given:
        if name in _SINGLE_TASK_ARGUMENTS:
            raise InputError(
                f"{name}= would be the same for all tasks of a Supervisor; set it on one of its tasks instead"
            )
        if name not in _OPERATOR_ARGUMENTS:
            raise InputError(
                f"{name}= is unknown: neither a Supervisor nor an operator has this argument; remove it"
            )
    given = {
        name: getattr(value, "pool", value) if name == "pool" else value for name, value in given.items()
    }
    shared = {name: value for name, value in given.items() if name not in _FIRST_TASK_ARGUMENTS}
    if pool is not None:
        shared.setdefault("pool", pool)
    return shared, {name: given[name] for name in _FIRST_TASK_ARGUMENTS if name in given}


def _step_name(name: str) -> str:
    if name not in REPLACEABLE_STEPS:
        raise InputError(
            f"steps= has {name!r}, which is not a step; give one of {', '.join(REPLACEABLE_STEPS)}"
        )
    return name


def _task(name: str, given: Any) -> BaseOperator:
    # A call of a function with @task returns an XComArg. Its `operator` is the task.
    task = getattr(given, "operator", given)
    if not isinstance(task, BaseOperator):
        raise InputError(f"steps[{name!r}] is a {type(given).__name__}; give a task of the DAG")
    return task


def _validate(kind: type[C], data: dict[str, Any], context: dict[str, Any] | None = None) -> C:
    try:
        return kind.model_validate(data, context=context)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        lines = [
            f"{'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}"
            for item in found
        ]
        raise InputError("\n  ".join([f"cfg= is not a valid {kind.__name__}:", *lines])) from None
