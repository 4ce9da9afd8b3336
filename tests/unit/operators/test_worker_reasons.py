"""Whether a task starts and ends in the triggerer or on a worker, and the reasons."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import jinja2
import pytest
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, Asset, Param, task, task_group
from airflow.serialization.serialized_objects import DagSerialization

from deferrable_ops.operators.webhook import WebhookOperator, WebhookOperatorMixin
from deferrable_ops.operators.worker_reasons import worker_end_reasons

URL = "https://jobs.example.com/train"


def operator(**arguments: Any) -> WebhookOperator:
    with DAG("dag", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):
        return WebhookOperator(**{"task_id": "job", "url": URL, **arguments})


def serialized(dag: DAG, task_id: str) -> Any:
    return DagSerialization.from_dict(DagSerialization.to_dict(dag)).get_task(task_id)


def test_plain_task_starts_in_the_triggerer() -> None:
    job = operator(json={"date": "{{ ds }}", "to": "{{ conn.jobs.host }}", "ti": "{{ ti.id }}"})
    assert job.worker_start_reason is None
    assert job.start_from_trigger is True
    assert WebhookOperator.start_from_trigger is False  # a mapped task takes the class's


@pytest.mark.parametrize(
    "arguments, because",
    [
        ({"headers": {"X": "{{ ti.xcom_pull('up') }}"}}, "ti.xcom_pull"),
        ({"headers": {"X": "{{ task_instance['xcom_pull']('up') }}"}}, "task_instance.xcom_pull"),
        ({"json": [{"deep": "{{ prev_start_date_success }}"}]}, "prev_start_date_success"),
        ({"url": "https://x/{{ my_macro() }}"}, "my_macro"),
        ({"json": {"{{ outlet_events }}": 1}}, "outlet_events"),
        ({"data": "{% include 'body.xml' %}"}, "includes another"),
        ({"data": "{% set me = ti %}{{ me.xcom_pull('up') }}"}, "uses ti,"),
        ({"data": "{{ ti | attr('xcom_pull')('up') }}"}, "uses ti,"),
        ({"data": "{{ [ti, 1][0].xcom_pull('up') }}"}, "uses ti,"),
        (
            {"data": "{% macro pull(it) %}{{ it.xcom_pull() }}{% endmacro %}{{ pull(task_instance) }}"},
            "uses task_instance,",
        ),
        ({"data": "{{ ti[name] }}{% set name = 'xcom_pull' %}"}, "ti.[...]"),
        ({"data": "{{ task.dag.folder }}"}, "task.dag"),
        ({"data": "{{ dag.schedule }}"}, "dag.schedule"),
        ({"data": "{{ macros.house_plugin.rate() }}"}, "macros.house_plugin"),
        ({"data": "{{ ds"}, "malformed"),
        ({"on_execute_callback": print}, "on_execute_callback"),
        ({"pre_execute": print}, "pre_execute"),
        ({"pool": "narrow"}, "pool 'narrow'"),
        ({"queue": "gpu"}, "queue 'gpu'"),
        ({"max_active_tis_per_dag": 1}, "max_active_tis_per_dag"),
        ({"max_active_tis_per_dagrun": 1}, "max_active_tis_per_dagrun"),
    ],
)
def test_task_with_a_feature_that_needs_a_worker_starts_on_a_worker(
    arguments: dict[str, Any], because: str
) -> None:
    job = operator(**arguments)
    assert because in str(job.worker_start_reason)
    assert job.start_from_trigger is False
    assert job.start_trigger_args is None


def test_task_with_templates_that_a_triggerer_can_render_starts_there() -> None:
    job = operator(
        json=[
            "{% for n in range(3) %}{{ loop.index }}{{ macros.ds_add(ds, n) }}{% endfor %}",
            "{{ dag.dag_id }}/{{ task.task_id }}/{{ ti.task_id }}/{{ task_instance['run_id'] }}/{{ dag_run.conf.x }}",
        ]
    )
    assert job.worker_start_reason is None


@pytest.mark.parametrize(
    "dag_arguments, because",
    [
        ({"user_defined_macros": {"today": print}}, "user-defined macros"),
        ({"user_defined_filters": {"shout": print}}, "user-defined macros or filters"),
        ({"render_template_as_native_obj": True}, "native objects"),
        ({"jinja_environment_kwargs": {"trim_blocks": True}}, "template environment"),
        ({"template_undefined": jinja2.DebugUndefined}, "template environment"),
    ],
)
def test_template_options_of_the_dag_affect_only_tasks_with_templates(
    dag_arguments: dict[str, Any], because: str
) -> None:
    with DAG("dag", schedule=None, **dag_arguments):
        templated = WebhookOperator(task_id="templated", url=URL, json={"date": "{{ ds }}"})
        plain = WebhookOperator(task_id="plain", url=URL, json={"date": "today"})
    assert because in str(templated.worker_start_reason)
    assert plain.worker_start_reason is None


def test_task_with_its_own_native_rendering_starts_on_a_worker() -> None:
    job = operator(json={"date": "{{ ds }}"}, render_template_as_native_obj=True)
    assert "native objects" in str(job.worker_start_reason)


def test_subclass_with_its_own_pre_execute_starts_on_a_worker() -> None:
    class Prepared(WebhookOperator):
        def pre_execute(self, context: Any) -> None: ...

    with DAG("dag", schedule=None):
        assert Prepared(task_id="job", url=URL).worker_start_reason == "it has pre_execute"


@pytest.mark.parametrize("name", ["execute", "render_template_fields"])
def test_subclass_with_its_own_start_starts_on_a_worker(name: str) -> None:
    own = type("Own", (WebhookOperator,), {name: lambda self, *_, **__: None, "__module__": "dags.own"})
    with DAG("dag", schedule=None):
        assert own(task_id="job", url=URL).worker_start_reason == f"its class has its own {name}"


def test_subclass_that_reads_templates_from_files_starts_on_a_worker() -> None:
    class FromFile(WebhookOperator):
        template_ext = (".json",)

    with DAG("dag", schedule=None):
        assert FromFile(task_id="job", url=URL).worker_start_reason == "its class reads templates from files"


class Measuring(WebhookOperator):
    def execute_complete(self, context: Any, event: Any) -> Any:
        return len(super().execute_complete(context, event))


class MeasuringPython(WebhookOperatorMixin, PythonOperator):
    def callback_received(self, context: Any, event: Any) -> Any:
        return len(super().callback_received(context, event))


def test_subclass_with_its_own_end_method_ends_on_a_worker_with_any_outcome() -> None:
    with DAG("dag", schedule=None):
        operator_ends = worker_end_reasons(Measuring(task_id="job", url=URL))
        mixed_in_ends = worker_end_reasons(MeasuringPython(task_id="python", python_callable=print))
    assert operator_ends == dict.fromkeys(
        ("success", "failure", "skip"), "its class has its own execute_complete"
    )
    assert set(mixed_in_ends.values()) == {"its class has its own callback_received"}


@pytest.mark.parametrize(
    "of_dag, of_task, because",
    [
        ({}, {"n": Param(type="integer")}, "no default"),
        ({"n": Param(type="integer")}, {}, "no default"),
        ({}, {"n": Param(5, type="integer")}, "validated"),
        ({"n": Param(5, type="integer"), "m": 1}, {"k": "plain"}, "None"),
    ],
)
def test_params_that_a_triggerer_would_not_check_start_on_a_worker(
    of_dag: dict[str, Any], of_task: dict[str, Any], because: str
) -> None:
    with DAG("dag", schedule=None, params=of_dag):
        job = WebhookOperator(task_id="job", url=URL, params=of_task)
    assert because in str(job.worker_start_reason)


def test_output_of_another_task_starts_on_a_worker() -> None:
    with DAG("dag", schedule=None):
        up = WebhookOperator(task_id="up", url=URL)
        down = WebhookOperator(task_id="down", url=URL, json={"n": [up.output]})
    assert down.worker_start_reason == "json= is the output of another task"
    assert down.upstream_task_ids == {"up"}


def test_task_in_a_mapped_group_starts_on_a_worker_and_in_a_plain_group_does_not() -> None:
    with DAG("dag", schedule=None) as dag:

        @task_group
        def group(n: int) -> None:
            WebhookOperator(task_id="job", url=URL, json={"n": n})

        group.override(group_id="mapped").expand(n=[1, 2])
        group.override(group_id="plain")(1)
    assert "mapped task group" in str(dag.get_task("mapped.job").worker_start_reason)
    assert dag.get_task("plain.job").worker_start_reason is None


def test_mapped_task_starts_on_a_worker() -> None:
    with DAG("dag", schedule=None) as dag:
        WebhookOperator.partial(task_id="job", url=URL).expand(json=[1, 2])
    assert serialized(dag, "job").start_from_trigger is False


def test_decision_includes_changes_to_the_task_after_its_creation() -> None:
    job = WebhookOperator(task_id="job", url=URL, json={"date": "{{ ds }}"})
    assert job.start_from_trigger is True
    DAG("dag", schedule=None, user_defined_macros={"today": print}).add_task(job)
    assert job.start_from_trigger is False


def test_two_tasks_do_not_share_trigger_kwargs() -> None:
    with DAG("dag", schedule=None) as dag:
        WebhookOperator(task_id="one", url=f"{URL}/1")
        WebhookOperator(task_id="two", url=f"{URL}/2", outlets=[Asset("done")])
    one, two = (serialized(dag, name).start_trigger_args.trigger_kwargs["__var"] for name in ("one", "two"))
    assert (one["url"], two["url"]) == (f"{URL}/1", f"{URL}/2")
    assert "ends_on_worker" not in one
    assert two["ends_on_worker"]["__var"] == {"success": "it has outlets"}


class Overriding(WebhookOperator):
    def post_execute(self, context: Any, result: Any = None) -> None: ...


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"outlets": [Asset("done")]}, {"success": "it has outlets"}),
        ({"on_success_callback": print}, {"success": "it has on_success_callback"}),
        ({"post_execute": print}, {"success": "it has post_execute"}),
        ({"multiple_outputs": True}, {"success": "it has multiple_outputs"}),
        ({"on_skipped_callback": print}, {"skip": "it has on_skipped_callback"}),
        ({"email": "ops@example.com"}, {"failure": "it sends an email on failure or retry"}),
        ({"email": "ops@example.com", "email_on_failure": False, "email_on_retry": False}, {}),
        ({"retries": 2}, {"final_failure": "it has retries, and this failure must not be retried"}),
        ({"on_failure_callback": print}, {}),
        ({"do_xcom_push": False}, {}),
    ],
)
def test_task_with_a_feature_that_needs_a_worker_ends_on_a_worker(
    arguments: dict[str, Any], expected: dict[str, str]
) -> None:
    assert operator(**arguments).trigger_kwargs()["ends_on_worker"] == expected


def test_downstream_tasks_and_the_dag_are_considered() -> None:
    with DAG("dag", schedule=None, fail_fast=True, default_args={"retries": 0}):
        job = WebhookOperator(task_id="job", url=URL)

        @task
        def double(number: int) -> int:
            return 2 * number

        assert job.trigger_kwargs()["ends_on_worker"] == {"failure": "its DAG has fail_fast"}
        double.expand(number=job.output)
    assert job.trigger_kwargs()["ends_on_worker"]["success"] == "another task is mapped over its output"


def test_overridden_post_execute_counts() -> None:
    with DAG("dag", schedule=None):
        job = Overriding(task_id="job", url=URL)
    assert job.trigger_kwargs()["ends_on_worker"] == {"success": "it has post_execute"}


def test_airflow_has_no_end_from_trigger_attribute_of_ours() -> None:
    assert not hasattr(
        operator(), "end_from_trigger"
    )  # a DAG with it does not parse where listeners are installed
