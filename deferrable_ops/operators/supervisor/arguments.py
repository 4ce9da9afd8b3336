"""The arguments of a Supervisor: which are whose, and what they make of its configuration."""

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

C = TypeVar("C", bound=SupervisorAirflowConfiguration)

CHECK: Final = "check-programs"
FORCE_KILL: Final = "force-kill"
STARTS: Final = ("configure-supervisor", "start-supervisor", "start-programs")
STOPS: Final = ("stop-programs", "stop-supervisor", "unconfigure-supervisor")
STEPS: Final = (*STARTS, CHECK, "restart-programs", *STOPS, FORCE_KILL)

REMOTE_ARGUMENTS: Final = (*SSHOperatorArgs.model_fields, "command_prefix")

_OF_THE_FIRST: Final = ("trigger_rule", "depends_on_past", "wait_for_downstream")
_OF_ONE_TASK: Final = frozenset({"dag", "task_id", "task_display_name", "inlets", "outlets", "params"})
_OF_AN_OPERATOR: Final = frozenset(inspect.signature(BaseOperator.__init__).parameters) - {"self", "kwargs"}


def parse_configuration(kind: type[C], given: Any) -> C:
    """Return the configuration that a user gave.

    :param given: a configuration, or a dict with its fields.
    :raises InputError: it is none of this kind, or wrong.
    """
    if given is None:
        raise InputError(f"cfg= is missing; give a {kind.__name__}")
    if isinstance(given, kind):
        # One for SSH would say the same of another machine.
        if isinstance(given, SupervisorSSHAirflowConfiguration) and not issubclass(
            kind, SupervisorSSHAirflowConfiguration
        ):
            raise InputError("cfg= is for a machine that is reached by SSH: use SupervisorSSH")
        return given
    if isinstance(given, SupervisorAirflowConfiguration):
        given = given.given_fields
    if not isinstance(given, Mapping):
        raise InputError(
            f"cfg= is a {type(given).__name__}; give a {kind.__name__}, or a dict with its fields"
        )
    return _validated(kind, dict(given))


def override_remote(cfg: C, host: str | None, port: int | str | None, own: Mapping[str, Any]) -> C:
    """Return a configuration for SSH with other values in the places of its own.

    :param host: the machine's name; None: as it is.
    :param port: of the inet server; None: as it is.
    :param own: fields of how the machine is reached, and ``command_prefix``.
    :raises InputError: one of them is wrong.
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
    return _validated(type(cfg), data)


def with_working_dir(cfg: C, dag: DAG, name: str, task_group: Any = None) -> C:
    """Return a configuration whose working directory, where none was given, is named after its DAG.

    Two DAGs with the same programs would share one that is named after these, and it would move with each change of
    them, away from the supervisord that runs there.

    :param name: the Supervisor's.
    :param task_group: its tasks' TaskGroup, where that is not the one of the ``with`` around.
    :raises InputError: the name is too long for a socket in that directory.
    """
    if given_working_dir(cfg) is not None:
        return cfg
    group = task_group or TaskGroupContext.get_current(dag)
    prefix = name if group is None else group.child_id(name)
    # No id holds a "+".
    whole = dag.dag_id if prefix == dag.dag_id else f"{dag.dag_id}+{prefix}"
    return _validated(type(cfg), cfg.given_fields, {DEFAULT_NAME: whole})


def parse_steps(given: Mapping[str, Any]) -> dict[str, BaseOperator]:
    """Return the tasks that a user puts in the places of steps.

    :raises InputError: a name is no step's, or a value is no task.
    """
    return {_step(name): _task(name, task) for name, task in given.items()}


def split_task_arguments(given: Mapping[str, Any], pool: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments that all tasks have, and those of the first one alone.

    :param pool: the configuration's.
    :raises InputError: one is no argument of an operator, or can only be one task's.
    """
    for name in given:
        if name in _OF_ONE_TASK:
            raise InputError(
                f"{name}= would be the same for all tasks of a Supervisor; set it on one of them"
            )
        if name not in _OF_AN_OPERATOR:
            raise InputError(f"{name}= is unknown: it is neither a Supervisor's nor an operator's argument")
    given = {
        name: getattr(value, "pool", value) if name == "pool" else value for name, value in given.items()
    }
    shared = {name: value for name, value in given.items() if name not in _OF_THE_FIRST}
    if pool is not None:
        shared.setdefault("pool", pool)
    return shared, {name: given[name] for name in _OF_THE_FIRST if name in given}


def _step(name: str) -> str:
    if name not in STEPS:
        raise InputError(f"steps= has {name!r}, which is no step; they are {', '.join(STEPS)}")
    return name


def _task(name: str, given: Any) -> BaseOperator:
    task = getattr(given, "operator", given)  # what a function with @task returns
    if not isinstance(task, BaseOperator):
        raise InputError(f"steps[{name!r}] is a {type(given).__name__}; give a task of the DAG")
    return task


def _validated(kind: type[C], data: dict[str, Any], context: dict[str, Any] | None = None) -> C:
    try:
        return kind.model_validate(data, context=context)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        lines = [
            f"{'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}"
            for item in found
        ]
        raise InputError("\n  ".join([f"cfg= is no {kind.__name__}:", *lines])) from None
