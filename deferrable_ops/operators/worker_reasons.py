"""The ways in and out of a task: may it start in the triggerer, may it end there, and if not, why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jinja2
from airflow.sdk import BaseOperator
from airflow.sdk.configuration import conf
from airflow.sdk.definitions._internal.types import is_arg_set
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.definitions.xcom_arg import XComArg

from deferrable_ops.operators.templates import find_templates, needs_worker_because

if TYPE_CHECKING:
    from deferrable_ops.operators.base import TriggererOperator

_DEFAULT_POOL = "default_pool"
_AT_START = (
    "execute",
    "prepare_for_execution",
    "prepare_template",
    "render_template_fields",
    "render_template",
)


def worker_start_reason(task: TriggererOperator, *, waits: bool = True) -> str | None:
    """Return what, of all that the user declared, only a worker does at a task's start; None when nothing is.

    :param waits: False for a task that ends at once: a pool, a queue or a limit would limit nothing.
    """
    return (
        _mapping_needs_worker(task)
        or _arguments_need_worker(task)
        or _params_need_worker(task)
        or _hooks_need_worker(task)
        or (_limits_need_worker(task) if waits else None)
    )


def worker_end_reasons(task: BaseOperator) -> dict[str, str]:
    """Return what only a worker does at a task's end, by how it ends: a success, a failure, a skip.

    ``final_failure`` is a failure that must not be retried, for which Airflow's triggerer has no event.
    """
    own_end = next(
        (f"its class has its own {name}" for name in _at_end(task) if _is_overridden(task, name)), None
    )
    found = {
        "success": own_end or _success_needs_worker(task),
        "failure": own_end or _failure_needs_worker(task),
        "final_failure": "it has retries, and this failure must not be retried" if task.retries else None,
        "skip": own_end or ("it has on_skipped_callback" if task.on_skipped_callback else None),
    }
    return {ending: reason for ending, reason in found.items() if reason is not None}


def _mapping_needs_worker(task: TriggererOperator) -> str | None:
    # A task that is mapped itself is another class at parse time, and starts on a worker whatever this says.
    if task.get_closest_mapped_task_group() is not None:
        return "it is in a mapped task group"
    return None


def _arguments_need_worker(task: TriggererOperator) -> str | None:
    if task.template_ext:
        return "its class reads templates from files"
    templates: list[str] = []
    # What the trigger is not given, a worker renders when the task ends there.
    for name in (name for name in task.template_fields if name in task.trigger_class.arguments):
        value = getattr(task, name, None)
        if next(XComArg.iter_xcom_references(value), None) is not None:
            return f"{name}= is the output of another task"
        templates += find_templates(value)
    dag = task.get_dag()
    if templates and dag is not None:
        if dag.user_defined_macros or dag.user_defined_filters:
            return "its DAG has user-defined macros or filters"
        if dag.jinja_environment_kwargs or dag.template_undefined is not jinja2.StrictUndefined:
            return "its DAG configures the template environment"
    if templates and _renders_native_objects(task):
        return "its templates are rendered as native objects"
    return next(filter(None, map(needs_worker_because, templates)), None)


def _params_need_worker(task: BaseOperator) -> str | None:
    dag = task.get_dag()
    of_task, of_dag = ParamsDict(task.params), ParamsDict({} if dag is None else dag.params)
    params = [*map(of_task.get_param, of_task), *map(of_dag.get_param, of_dag)]
    if not all(is_arg_set(param.value) for param in params):
        return "one of its params has no default"  # if its run has none either, Airflow's triggerer does not survive
    if any(param.source == "task" and param.schema for param in params):
        return "its own params are validated"
    return None


def _renders_native_objects(task: BaseOperator) -> bool:
    dag = task.get_dag()
    of_dag = dag is not None and dag.render_template_as_native_obj
    return of_dag if task.render_template_as_native_obj is None else task.render_template_as_native_obj


def _hooks_need_worker(task: TriggererOperator) -> str | None:
    if task.on_execute_callback:
        return "it has on_execute_callback"
    if _is_given(task, "pre_execute"):
        return "it has pre_execute"
    return next((f"its class has its own {name}" for name in _AT_START if _is_overridden(task, name)), None)


def _limits_need_worker(task: TriggererOperator) -> str | None:
    if task.pool != _DEFAULT_POOL:
        return f"it is in the pool {task.pool!r}"
    if task.queue != conf.get("operators", "default_queue", fallback="default"):
        return f"it is in the queue {task.queue!r}"
    if task.max_active_tis_per_dag is not None:
        return "it has max_active_tis_per_dag"
    if task.max_active_tis_per_dagrun is not None:
        return "it has max_active_tis_per_dagrun"
    return None


def _success_needs_worker(task: BaseOperator) -> str | None:
    if task.outlets:
        return "it has outlets"
    if task.on_success_callback:
        return "it has on_success_callback"
    if _is_given(task, "post_execute"):
        return "it has post_execute"
    if task.multiple_outputs:
        return "it has multiple_outputs"
    if task.returns_dag_result:
        return "its value is the result of its DAG"
    if task.get_dag() is not None and next(iter(task.iter_mapped_dependants()), None) is not None:
        return "a task is mapped over its output"
    return None


def _failure_needs_worker(task: BaseOperator) -> str | None:
    if task.email and (task.email_on_failure or task.email_on_retry):
        return "it sends an email on failure or retry"
    if task.retry_policy is not None:
        return "it has a retry_policy"
    dag = task.get_dag()
    if dag is not None and dag.fail_fast:
        return "its DAG has fail_fast"
    return None


def _at_end(task: BaseOperator) -> tuple[str, ...]:
    return "resume_execution", getattr(task, "next_method", "resume_execution")


def _is_overridden(task: BaseOperator, method: str) -> bool:
    return getattr(type(task), method).__module__.partition(".")[0] not in ("airflow", "deferrable_ops")


def _is_given(task: BaseOperator, hook: str) -> bool:
    overridden = getattr(type(task), hook) is not getattr(BaseOperator, hook)
    return overridden or getattr(task, f"_{hook}_hook", None) is not None
