"""Validates the arguments of a Supervisor, and puts their values into the configuration of the supervisord."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, TypeVar

from airflow.sdk import DAG, BaseNotifier, BaseOperator
from airflow.sdk.definitions._internal.contextmanager import TaskGroupContext
from pydantic import ValidationError

from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.high_availability.check_callables import triggerer_import_problem
from deferrable_ops.supervisord import (
    SSHOperatorArgs,
    SupervisorAirflowConfiguration,
    SupervisorSSHAirflowConfiguration,
)
from deferrable_ops.supervisord.airflow import fields_of_hook
from deferrable_ops.supervisord.defaults import DEFAULT_NAME, given_working_dir
from deferrable_ops.supervisord.policy import NOTIFIER_FIX, ProgramNotifier
from deferrable_ops.triggers.supervisor.configuration import START_STEPS, TEARDOWN_STEPS
from deferrable_ops.triggers.supervisor.watch.notices import takes_context

C = TypeVar("C", bound=SupervisorAirflowConfiguration)

CHECK: Final = "check-programs"
FORCE_KILL: Final = "force-kill"
REPLACEABLE_STEPS: Final = (*START_STEPS, CHECK, "restart-programs", *TEARDOWN_STEPS, FORCE_KILL)

REMOTE_ARGUMENTS: Final = (*SSHOperatorArgs.model_fields, "command_prefix", "ssh_hook")

_TEARDOWN_RETRIES: Final = 3
_TEARDOWN_RETRY_DELAY: Final = timedelta(seconds=30)

_FIRST_TASK_ARGUMENTS: Final = ("trigger_rule", "depends_on_past", "wait_for_downstream")
_SINGLE_TASK_ARGUMENTS: Final = frozenset(
    {"dag", "task_id", "task_display_name", "inlets", "outlets", "params"}
)
_OPERATOR_ARGUMENTS: Final = frozenset(inspect.signature(BaseOperator.__init__).parameters) - {
    "self",
    "kwargs",
}


def parse_configuration(kind: type[C], given: Any) -> C:
    """Return the argument ``cfg`` of a Supervisor as a configuration of the class `kind`.

    :param given: the value of ``cfg``: a configuration object, or a dict with the fields of one.
    :raises InputError: if the value is invalid, or is a configuration object of a class that cannot be converted to
        `kind`.
    """
    if given is None:
        raise InputError(f"cfg= is missing; give a {kind.__name__}, or a dict with its fields")
    if isinstance(given, kind):
        # A configuration for SSH describes another machine, so it cannot be used for a local supervisord.
        if isinstance(given, SupervisorSSHAirflowConfiguration) and not issubclass(
            kind, SupervisorSSHAirflowConfiguration
        ):
            raise InputError(
                "cfg= is a configuration for SSH, but Supervisor does not use SSH; use SupervisorSSH instead"
            )
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

    :param host: host name of the remote machine, which replaces the host in `cfg`; None keeps the host in `cfg`.
    :param port: TCP port of supervisord, which replaces the port in `cfg`; None keeps the port in `cfg`.
    :param own: the other arguments by name: ``command_prefix``, ``ssh_hook`` and the fields of SSHOperatorArgs. An
        argument that is None keeps the value in `cfg`.
    :raises InputError: if a value is invalid.
    """
    given = {name: value for name, value in own.items() if value is not None}
    if "ssh_hook" in given:
        given = fields_of_hook(given.pop("ssh_hook")) | given
    if host is not None:
        if given.get("remote_host") not in (None, host):
            raise InputError(
                f"host={host!r} and remote_host={given['remote_host']!r} differ; give only one of them"
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


def with_notifiers(cfg: C, given: Any) -> C:
    """Return a configuration in which the argument ``on_program_event`` of a Supervisor replaces the field of `cfg`.

    :raises InputError: if a notifier cannot be sent to the Triggerer.
    """
    return _validate(type(cfg), cfg.given_fields | {"on_program_event": given})


def require_notifiers(cfg: SupervisorAirflowConfiguration, dag_file: str | None) -> None:
    """Import the notifiers of a configuration, and check that the Triggerer can call them.

    :param dag_file: the path of the DAG file; None if this path is unknown.
    :raises InputError: if a notifier cannot be imported in the Triggerer, is not asynchronous, or does not accept its
        kwargs.
    """
    for notifier in cfg.on_program_event:
        problem = _notifier_problem(notifier, dag_file)
        if problem is not None:
            raise InputError(f"on_program_event={notifier.path!r} {problem}; {NOTIFIER_FIX}")


def _notifier_problem(notifier: ProgramNotifier, dag_file: str | None) -> str | None:
    try:
        found = pkgutil.resolve_name(notifier.path)
    except Exception as error:
        return f"cannot be imported ({type(error).__name__}: {error})"
    if (problem := triggerer_import_problem(found, dag_file, "the notifier")) is not None:
        return f"cannot be imported in the Triggerer, because {problem}"
    is_notifier = inspect.isclass(found) and issubclass(found, BaseNotifier)
    if is_notifier and found.async_notify is BaseNotifier.async_notify:
        return "has no async_notify, so it cannot be called in the Triggerer"
    if not is_notifier and not inspect.iscoroutinefunction(found):
        return "is neither a subclass of BaseNotifier nor an async function"
    own: dict[str, Any] = {"context": {}} if not is_notifier and takes_context(found) else {}
    try:
        inspect.signature(found).bind(**notifier.kwargs, **own)
    except TypeError as error:
        return f"does not accept its kwargs ({error})"
    return None


def with_working_dir(cfg: C, dag: DAG, name: str, task_group: Any = None) -> C:
    """Return a copy of `cfg` with a working directory for supervisord; if `cfg` already has one, return `cfg` itself.

    The name of the added directory contains the DAG's id and the Supervisor's name. The directory's name does not
    contain the names of programs. Otherwise, two DAGs with the same programs would share one directory. And after a
    user has renamed a program, the tasks would no longer find the directory of the running supervisord.

    :param name: name of the Supervisor, which becomes part of the directory's name.
    :param task_group: the TaskGroup of the tasks, whose id becomes part of the directory's name; None means the
        TaskGroup of the surrounding ``with`` block.
    :raises InputError: if the directory's path is so long that the path of the Unix socket in this directory would
        exceed the operating system's limit.
    """
    if given_working_dir(cfg) is not None:
        return cfg
    group = task_group or TaskGroupContext.get_current(dag)
    prefix = name if group is None else group.child_id(name)
    # No id contains a "+", so two different pairs of ids never give the same name.
    whole = dag.dag_id if prefix == dag.dag_id else f"{dag.dag_id}+{prefix}"
    return _validate(type(cfg), cfg.given_fields, {DEFAULT_NAME: whole})


def parse_steps(given: Mapping[str, Any]) -> dict[str, BaseOperator]:
    """Return the argument ``steps`` of a Supervisor as a dict of tasks. Each key is the name of a step, and each value
    is the task that replaces the Supervisor's own task for this step.

    :raises InputError: if a key is not the name of a step, or a value is not a task.
    """
    return {_step_name(name): _task(name, task) for name, task in given.items()}


def split_task_arguments(given: Mapping[str, Any], pool: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return two dicts: the arguments for all tasks of a Supervisor, and the arguments for its first task only.

    :param pool: the pool in the configuration; all tasks use this pool if the arguments do not contain ``pool``.
    :raises InputError: if an argument is unknown, or is an argument of a single task, for example ``task_id``.
    """
    for name in given:
        if name in _SINGLE_TASK_ARGUMENTS:
            raise InputError(
                f"{name}= is an argument for a single task, not for a Supervisor; set {name}= on a task of the "
                "Supervisor"
            )
        if name not in _OPERATOR_ARGUMENTS:
            raise InputError(
                f"{name}= is unknown, because no Supervisor and no operator has this argument; remove {name}="
            )
    given = {
        name: getattr(value, "pool", value) if name == "pool" else value for name, value in given.items()
    }
    shared = {name: value for name, value in given.items() if name not in _FIRST_TASK_ARGUMENTS}
    if pool is not None:
        shared.setdefault("pool", pool)
    return shared, {name: given[name] for name in _FIRST_TASK_ARGUMENTS if name in given}


def teardown_retries(given: Mapping[str, Any], default_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with which a teardown step is retried: at least 3 times, unless the user has given
    ``retries`` to the Supervisor.

    :param given: the arguments for all tasks of the Supervisor.
    :param default_args: the ``default_args`` of the DAG.
    """
    if "retries" in given:
        return {}
    found = {"retries": max(_TEARDOWN_RETRIES, int(default_args.get("retries") or 0))}
    delayed = "retry_delay" in given or "retry_delay" in default_args
    return found if delayed else {**found, "retry_delay": _TEARDOWN_RETRY_DELAY}


def _step_name(name: str) -> str:
    if name not in REPLACEABLE_STEPS:
        raise InputError(
            f"steps= has the key {name!r}, which is not a step; use one of {', '.join(REPLACEABLE_STEPS)}"
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
        raise InputError(
            "\n  ".join([f"cfg= is not a valid {kind.__name__}; correct these fields:", *lines])
        ) from None
