"""Determines why a task must start or end on a worker, instead of in the triggerer."""

from __future__ import annotations

from collections.abc import Collection

import jinja2
from airflow.sdk import BaseOperator
from airflow.sdk.configuration import conf
from airflow.sdk.definitions._internal.types import is_arg_set
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.definitions.xcom_arg import XComArg

from deferrable_ops.operators.templates import find_templates, template_problem

_DEFAULT_POOL = "default_pool"
_START_METHODS = (
    "execute",
    "prepare_for_execution",
    "prepare_template",
    "render_template_fields",
    "render_template",
)


def worker_start_reason(
    task: BaseOperator, trigger_arguments: Collection[str], *, waits: bool = True
) -> str | None:
    """Return the reason why a task must start on a worker, for example a callback that a triggerer does not support.

    :param trigger_arguments: the names of the arguments that the task passes to its trigger.
    :param waits: whether the task waits; False for a task that ends at once. For such a task, the pool, the queue and
        the concurrency limits are ignored.
    :return: the reason why the task must start on a worker; None if the task can start in the triggerer.
    """
    return (
        _mapping_needs_worker(task)
        or _arguments_need_worker(task, trigger_arguments)
        or _params_need_worker(task)
        or _hooks_need_worker(task)
        or (_limits_need_worker(task) if waits else None)
    )


def worker_end_reasons(task: BaseOperator) -> dict[str, str]:
    """Return the reasons why a task must end on a worker, by outcome: ``success``, ``failure``, ``final_failure``,
    ``skip``.

    The key ``final_failure`` stands for a failure that must not be retried. A task with such a failure ends on a
    worker, because a trigger cannot end a task in this way. The dict contains only the outcomes after which the task
    must end on a worker.
    """
    overridden = next(
        (f"its class has its own {name}" for name in _end_methods(task) if _is_overridden(task, name)), None
    )
    found = {
        "success": overridden or _success_needs_worker(task),
        "failure": overridden or _failure_needs_worker(task),
        "final_failure": "it has retries, and this failure must not be retried" if task.retries else None,
        "skip": overridden or ("it has on_skipped_callback" if task.on_skipped_callback else None),
    }
    return {ending: reason for ending, reason in found.items() if reason is not None}


def _mapping_needs_worker(task: BaseOperator) -> str | None:
    # At parse time, a mapped task itself is a MappedOperator, which always starts on a worker. So it is not checked
    # here.
    if task.get_closest_mapped_task_group() is not None:
        return "it is in a mapped task group"
    return None


def _arguments_need_worker(task: BaseOperator, trigger_arguments: Collection[str]) -> str | None:
    if task.template_ext:
        return "its class reads templates from files"
    templates: list[str] = []
    # The other template fields are rendered only if the task ends on a worker.
    for name in (name for name in type(task).template_fields if name in trigger_arguments):
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
    return next(filter(None, map(template_problem, templates)), None)


def _params_need_worker(task: BaseOperator) -> str | None:
    dag = task.get_dag()
    task_params, dag_params = ParamsDict(task.params), ParamsDict({} if dag is None else dag.params)
    params = [*map(task_params.get_param, task_params), *map(dag_params.get_param, dag_params)]
    if not all(is_arg_set(param.value) for param in params):
        # If the DAG run has no value for the param either, an error would end the triggerer process.
        return "one of its params has no default"
    if any(param.source == "task" and param.schema for param in params):
        return "its own params have a schema, and are validated only on a worker"
    return None


def _renders_native_objects(task: BaseOperator) -> bool:
    dag = task.get_dag()
    dag_default = dag is not None and dag.render_template_as_native_obj
    return dag_default if task.render_template_as_native_obj is None else task.render_template_as_native_obj


def _hooks_need_worker(task: BaseOperator) -> str | None:
    if task.on_execute_callback:
        return "it has on_execute_callback"
    if _is_given(task, "pre_execute"):
        return "it has pre_execute"
    return next(
        (f"its class has its own {name}" for name in _START_METHODS if _is_overridden(task, name)), None
    )


def _limits_need_worker(task: BaseOperator) -> str | None:
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
        return "another task is mapped over its output"
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


def _end_methods(task: BaseOperator) -> tuple[str, ...]:
    return "resume_execution", getattr(task, "next_method", "resume_execution")


def _is_overridden(task: BaseOperator, method: str) -> bool:
    return getattr(type(task), method).__module__.partition(".")[0] not in ("airflow", "deferrable_ops")


def _is_given(task: BaseOperator, hook: str) -> bool:
    is_overridden = getattr(type(task), hook) is not getattr(BaseOperator, hook)
    return is_overridden or getattr(task, f"_{hook}_hook", None) is not None
