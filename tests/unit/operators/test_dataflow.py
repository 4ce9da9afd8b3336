"""Errors for invalid arguments name the argument and the fix: at parse time, or once templates are rendered."""

from __future__ import annotations

import sys
import warnings
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowException
from airflow.sdk.execution_time.xcom import XCom

from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.dataflow import (
    DataflowFlexTemplateOperator,
    DataflowJobLink,
    DataflowJobSensor,
    DataflowStopJobOperator,
    DataflowTemplateOperator,
    DeferrableDataflowOperator,
)
from deferrable_ops.triggers.dataflow.triggers import DataflowLaunchTrigger, DataflowStopTrigger

PLACE = {"project_id": "my-project", "region": "europe-west1"}
BODY = {"containerSpecGcsPath": "gs://bucket/template.json"}
EXPERIMENT = {"additionalExperiments": ["enable_prime", "create_or_update_job"]}


def flex(**arguments: Any) -> DataflowFlexTemplateOperator:
    return DataflowFlexTemplateOperator(**{"task_id": "load", **PLACE, "body": BODY, **arguments})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"project_id": ""}, "project_id='' is not a project"),
        ({"region": None}, "region= is missing"),
        ({"region": "europe-west1-b"}, "it is a zone; set region='europe-west1'"),
        ({"region": "europe_west1"}, "region='europe_west1' is not a region; set e.g."),
        ({"gcp_conn_id": 7}, "gcp_conn_id= must be the id of an Airflow connection"),
        ({"impersonation_chain": [1]}, "impersonation_chain= must be the email address of a service account"),
        ({"body": None}, "body= must be a dict"),
        ({"body": "{}"}, "body= must be a dict"),
        ({"body": {}}, "body= has no template; add containerSpecGcsPath"),
        ({"body": {"containerSpecGcsPath": "s3://x"}}, "must be a path in Cloud Storage"),
        ({"body": {**BODY, "parameters": {"f": print}}}, "body['parameters']['f']= is a function"),
        ({"body": {**BODY, "parameters": ["a"]}}, "parameters= must be a dict of strings"),
        ({"body": {**BODY, "parameters": {"a": None}}}, "parameters['a'] is None"),
        ({"body": {**BODY, "parameters": {"a": {"b": 1}}}}, "parameters['a'] is a dict"),
        ({"body": {**BODY, "environment": []}}, "body['environment'] must be a dict"),
        ({"body": {**BODY, "update": True}}, "update: true"),
        ({"update": True}, "set append_job_name=False"),
        ({"transform_name_mapping": {"a": "b"}}, "transform_name_mapping= is for update=True only"),
        ({"append_job_name": False, "job_name": "x" * 64}, "has more than 63 characters"),
        (
            {"append_job_name": False, "update": True, "transform_name_mapping": ["a"]},
            "must be a dict of strings",
        ),
        ({"body": {**BODY, "environment": EXPERIMENT}}, "a second job would start"),
        ({"body": {**BODY, "environment": EXPERIMENT}, "append_job_name": False}, "a second job would start"),
        ({"body": {**BODY, "jobName": "a", "job_name": "b"}}, "has jobName twice"),
        ({"body": {"launchParameter": BODY, "validateOnly": True}}, "validateOnly"),
        ({"body": {"launchParameter": {**BODY, "update": True}}}, "update: true"),
        ({"body": {"launchParameter": BODY, "projectId": "other"}}, "remove projectId from body="),
        ({"body": {**BODY, "jobName": "1st"}}, "not valid in the name of a Dataflow job"),
        ({"job_name": "1st"}, "not valid in the name of a Dataflow job"),
        ({"job_name": 7}, "job_name= must be a string"),
        ({"task_id": "2_load"}, "set a job_name= that begins with a letter"),
        ({"labels": {"Team": "x"}}, "labels= has the key 'Team'"),
        ({"labels": {"team": "Data"}}, "labels['team'] is 'Data'"),
        ({"labels": {"team": 1}}, "labels['team'] is 1"),
        ({"labels": "team=data"}, "labels= must be a dict of strings"),
        ({"labels": {"deferrable-ops-wait": "x"}}, "use another key"),
        ({"expected_state": "JOB_STATE_DONE"}, "expected_state='JOB_STATE_DONE' is not one of 'done'"),
        ({"on_kill": "stop"}, "on_kill='stop' is not one of 'cancel', 'drain', 'leave'"),
        (
            {"expected_states": {"JOB_STATE_GONE"}},
            "expected_states= has 'JOB_STATE_GONE', which is no job state",
        ),
        ({"expected_states": set()}, "expected_states= must be a set of the API's names"),
        ({"expected_states": {"DONE"}, "expected_state": "done"}, "remove expected_state="),
        (
            {"expected_states": {"DONE"}, "expected_terminal_state": "DRAINED"},
            "remove expected_terminal_state=",
        ),
        ({"result": "all"}, "result='all' is not one of 'job', 'id', 'metrics'"),
        ({"on_timeout": "stop"}, "on_timeout='stop' is not one of 'cancel', 'drain', 'leave'"),
        ({"log_messages": "INFO"}, "log_messages='INFO' is not one of"),
        ({"poll_interval": 0}, "poll_interval=0 must be above zero"),
        ({"launch_timeout": "5m"}, "launch_timeout='5m' is not a duration"),
        ({"timeout": -1}, "timeout=-1 must be above zero"),
    ],
)
def test_bad_argument_is_named_with_its_fix(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        flex(**arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"body": {"container_spec_gcs_path": "gs://b/t", "job_name": "Load_Orders"}},
        {"body": {"containerSpec": {"image": "gcr.io/x"}}},
        {"body": {"launchParameter": BODY, "projectId": "my-project"}},
        {"body": {**BODY, "jobName": "{{ params.name }}", "parameters": {"date": "{{ ds }}", "n": 3}}},
        {"body": {**BODY, "update": False}},
        {"body": {**BODY, "update": True}, "append_job_name": False},
        {"body": {**BODY, "environment": EXPERIMENT}, "append_job_name": False, "update": True},
        {"append_job_name": False, "update": True, "transform_name_mapping": {"Read": "ReadOrders"}},
        {"append_job_name": False, "job_name": "x" * 63},
        {"body": "{{ var.json.launch }}"},
        {"project_id": "{{ var.value.project }}", "region": "{{ params.region }}"},
        {"labels": {"team": "{{ dag.dag_id }}"}, "expected_state": "{{ params.state }}"},
        {"impersonation_chain": ["a@x.iam.gserviceaccount.com", "b@x.iam.gserviceaccount.com"]},
        {"poll_interval": timedelta(minutes=1), "launch_timeout": 60, "log_messages": None},
        {"on_kill": "leave", "wait_until_finished": False, "expected_state": "drained"},
    ],
)
def test_valid_arguments_are_accepted(arguments: dict[str, Any]) -> None:
    flex(**arguments)


def test_stream_without_a_chosen_deadline_gets_a_note_when_the_dag_is_parsed() -> None:
    with pytest.warns(
        UserWarning, match="'load' fails if its job is not drained after 7 days, but the job keeps running"
    ):
        flex(expected_state="drained")
    with warnings.catch_warnings(action="error"):
        flex(expected_state="drained", on_timeout="drain")
        flex(expected_state="drained", timeout=timedelta(days=30))
        flex(expected_state="done")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"body": {**BODY, "update": "true"}}, "update: true"),
        ({"body": {**BODY, "containerSpecGcsPath": ""}}, "must be a path in Cloud Storage"),
        ({"project_id": ""}, "project_id='' is not a project"),
        ({"job_name": "{{ ds }}"}, "not valid in the name"),
        ({"expected_state": "finished"}, "expected_state='finished'"),
        ({"body": "no dict"}, "body= must be a dict"),
    ],
)
def test_rendered_arguments_are_validated_before_anything_is_sent(
    arguments: dict[str, Any], message: str
) -> None:
    attempt = {"ti_id": "x", "try_number": 1, "dag_id": "dag", "run_id": "run", "task_id": "load"}
    trigger = DataflowLaunchTrigger(**{**PLACE, "body": BODY, "attempt": attempt, **arguments})
    with pytest.raises(InputError) as caught:
        trigger.validate()
    assert message in str(caught.value)


def test_classic_template_takes_separate_arguments_or_a_body() -> None:
    made = DataflowTemplateOperator(
        task_id="load", **PLACE, template="gs://b/t", parameters={"a": "{{ ds }}"}, environment={"zone": "z"}
    )
    assert made.body == {"gcsPath": "gs://b/t", "parameters": {"a": "{{ ds }}"}, "environment": {"zone": "z"}}
    whole = {"gcsPath": "gs://b/t", "launchParameters": {"parameters": {"a": "1"}}}
    assert DataflowTemplateOperator(task_id="load", **PLACE, body=whole).body == whole
    assert made.trigger_kwargs()["kind"] == "classic"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "template= must be a path in Cloud Storage"),
        ({"template": "b/t"}, "template= must be a path in Cloud Storage"),
        (
            {"template": "gs://b/t", "body": {"gcs_path": "gs://b/u"}},
            "template= is an argument and also in body=",
        ),
        (
            {"parameters": {}, "body": {"gcsPath": "gs://b/t", "parameters": {}}},
            "parameters= is an argument and also in",
        ),
        ({"template": "gs://b/t", "body": {"launchParameters": {}}}, "is a complete launch request"),
        ({"template": "gs://b/t", "body": "{{ var.json.x }}"}, "write body= as a dict"),
    ],
)
def test_error_of_a_classic_template_names_the_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        DataflowTemplateOperator(task_id="load", **PLACE, **arguments)
    assert message in str(caught.value)


def seeds_own_usage(**more: Any) -> DeferrableDataflowOperator:
    return DeferrableDataflowOperator(
        trigger_kwargs={
            **PLACE,
            "body": {
                "job_name": "my_job",
                "parameters": {"dataflow-parameters": "x"},
                "environment": {"max_workers": 2, "temp_location": "gs://b/tmp"},
                "container_spec_gcs_path": "gs://b/t.json",
            },
        },
        task_id="load",
        **{"start_from_trigger": True, **more},
    )


def test_usage_of_deferrable_dataflow_operator_works_unchanged() -> None:
    with DAG("dag", schedule=None):
        task = seeds_own_usage()
        other = DataflowFlexTemplateOperator(task_id="other", **PLACE, body=BODY)
    assert task.start_from_trigger
    assert task.start_trigger_args is not None
    assert task.start_trigger_args.trigger_kwargs["body"]["job_name"] == "my_job"
    assert other.start_trigger_args is not None
    assert other.start_trigger_args.trigger_kwargs["body"] == BODY  # nothing is shared through the class


def test_start_from_trigger_false_starts_on_a_worker() -> None:
    with DAG("dag", schedule=None):
        task = seeds_own_usage(start_from_trigger=False)
    assert not task.start_from_trigger
    assert task.worker_start_reason == "it has start_from_trigger=False"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"trigger_kwargs": None}, "trigger_kwargs= must be a dict"),
        ({"trigger_kwargs": {"project_id": "p", "body": BODY}}, "trigger_kwargs= has no 'region'"),
        (
            {"trigger_kwargs": {**PLACE, "body": BODY}, "region": "r"},
            "region= is given twice, as an argument and in",
        ),
    ],
)
def test_bad_trigger_kwargs_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        DeferrableDataflowOperator(task_id="load", **arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "give either job_id= or job_name_prefix="),
        ({"job_id": "1", "job_name_prefix": "etl"}, "give either job_id= or job_name_prefix="),
        ({"job_name_prefix": ""}, "would stop every job of the region"),
        ({"job_id": ""}, "is not a job's id"),
        ({"job_id": "1", "how": "kill"}, "how='kill' is not one of 'cancel', 'drain'"),
    ],
)
def test_error_of_the_stop_operator_names_the_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        DataflowStopJobOperator(task_id="stop", **PLACE, **arguments)
    assert message in str(caught.value)
    with pytest.raises(InputError):
        DataflowStopTrigger(**PLACE, **arguments).validate()


def test_stop_operator_drains_by_default_as_the_google_providers_does() -> None:
    assert DataflowStopJobOperator(task_id="stop", **PLACE, job_id="1").trigger_kwargs()["how"] == "drain"
    # A stored trigger without `how` is from a release whose default was "cancel".
    assert DataflowStopTrigger(**PLACE, job_id="1").how == "cancel"


@pytest.mark.parametrize(
    "given, trigger",
    [
        ({"location": "europe-west4"}, {"region": "europe-west4"}),
        ({"poll_sleep": 10}, {"poll_interval": 10.0}),
        ({"deferrable": True}, {}),
        ({"drain_pipeline": True}, {"when_killed": "drain"}),
        ({"drain_pipeline": False}, {"when_killed": "cancel"}),
        ({"cancel_on_kill": False}, {"when_killed": "leave"}),
        ({"wait_until_finished": None}, {"wait_until_finished": True}),
        ({"expected_terminal_state": "JOB_STATE_DONE"}, {"expected_states": ["JOB_STATE_DONE"]}),
    ],
)
def test_arguments_of_the_google_provider_work(given: dict[str, Any], trigger: dict[str, Any]) -> None:
    place = PLACE if "location" not in given else {"project_id": "my-project"}
    task = DataflowFlexTemplateOperator(task_id="load", **place, body=BODY, **given)
    assert task.trigger_kwargs().items() >= trigger.items()


def test_expected_states_are_a_set_of_the_apis_names() -> None:
    states = {"JOB_STATE_DONE", "JOB_STATE_CANCELLED"}
    listed = ["JOB_STATE_CANCELLED", "JOB_STATE_DONE"]
    assert flex(expected_states=states).trigger_kwargs()["expected_states"] == listed
    sensor = DataflowJobSensor(task_id="wait", **PLACE, job_id="1", expected_statuses=states)
    assert sensor.trigger_kwargs()["expected_states"] == listed
    with pytest.warns(UserWarning, match="its job is not drained after 7 days"):
        flex(expected_states={"JOB_STATE_DRAINED"})


def test_value_of_a_classic_template_is_the_jobs_id_as_in_the_google_provider() -> None:
    classic = DataflowTemplateOperator(task_id="load", **PLACE, template="gs://b/t")
    assert classic.trigger_kwargs()["result"] == "id"
    assert flex().trigger_kwargs()["result"] == "job"
    # A stored trigger without `result` is from a release in which each value was the job.
    assert DataflowLaunchTrigger(**PLACE).result == "job"


def test_arguments_of_the_google_provider_work_in_default_args() -> None:
    given = {
        "location": "europe-west4",
        "project_id": "p",
        "dataflow_default_options": {"zone": "z", "project": "q"},
    }
    with DAG("dag", schedule=None, default_args=given):
        task = DataflowTemplateOperator(task_id="load", template="gs://b/t", options={"max_workers": 3})
        stop = DataflowStopJobOperator(task_id="stop", job_id="1", drain_pipeline=False, stop_timeout=60)
        sensor = DataflowJobSensor(task_id="wait", job_id="1")
    assert task.body["environment"] == {"zone": "z", "maxWorkers": 3}
    assert task.region == stop.region == sensor.region == "europe-west4"
    assert (stop.how, stop.timeout) == ("cancel", 60)


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"location": "us-central1"},
            "location= is the google provider's name for region=, but the two have different values",
        ),
        (
            {"poll_sleep": 5, "poll_interval": 6},
            "poll_sleep= is the google provider's name for poll_interval=",
        ),
        (
            {"drain_pipeline": True, "on_kill": "cancel"},
            "drain_pipeline= is the google provider's name for on_kill=",
        ),
        ({"deferrable": False}, "deferrable=False is not possible"),
        ({"cancel_timeout": 600}, "cancel_timeout= is not needed"),
    ],
)
def test_argument_of_the_google_provider_that_does_not_fit_gets_its_replacement(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        flex(**given)
    assert message in str(caught.value)


def test_sensor_refuses_the_job_name_of_the_google_providers_sensor() -> None:
    with pytest.raises(InputError, match="job_name= does not select one job"):
        DataflowJobSensor(task_id="wait", **PLACE, job_name="etl")


def test_options_that_cannot_be_merged_are_refused() -> None:
    with pytest.raises(InputError, match="options= must be a dict"):
        DataflowTemplateOperator(task_id="load", **PLACE, template="gs://b/t", options="{{ x }}")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "body, message",
    [
        ({**BODY, "enviroment": {}}, "LaunchFlexTemplateRequest; "),
        ({**BODY, "environment": {"maxWorker": 3}}, "maxWorker"),
        ({**BODY, "environment": {"max_workers": "many"}}, "max_workers"),
        ({"launchParameter": BODY, "validate": True}, "validate"),
    ],
)
def test_typo_in_a_body_without_templates_is_found_when_the_dag_is_parsed(
    body: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        flex(body=body)
    assert message in str(caught.value)


def test_body_with_a_template_or_without_the_client_is_checked_in_the_triggerer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flex(body={**BODY, "enviroment": {"x": "{{ ds }}"}})
    monkeypatch.setitem(sys.modules, "google.cloud.dataflow_v1beta3", None)
    flex(body={**BODY, "enviroment": {}})


def test_typo_in_the_fields_of_a_classic_template_is_found_when_the_dag_is_parsed() -> None:
    with pytest.raises(InputError, match="maxWorker"):
        DataflowTemplateOperator(task_id="load", **PLACE, template="gs://b/t", environment={"maxWorker": 1})


def test_error_of_the_sensor_names_the_argument() -> None:
    with pytest.raises(InputError, match="job_id='' is not a job's id"):
        DataflowJobSensor(task_id="wait", **PLACE, job_id="")
    with pytest.raises(InputError, match="expected_state='gone'"):
        DataflowJobSensor(task_id="wait", **PLACE, job_id="1", expected_state="gone")
    with pytest.raises(InputError, match="job_id=None is not a job's id"):
        DataflowJobSensor(task_id="wait", **PLACE)


def test_templates_are_rendered_in_all_fields_also_nested_ones() -> None:
    task = flex(
        project_id="{{ p }}",
        region="{{ r }}",
        body={**BODY, "parameters": {"a": "{{ a }}"}, "environment": {"x": [{"y": "{{ y }}"}]}},
        job_name="{{ n }}",
        labels={"team": "{{ t }}"},
        gcp_conn_id="{{ c }}",
        impersonation_chain=["{{ i }}"],
        expected_state="{{ e }}",
        on_kill="{{ k }}",
        log_messages="{{ l }}",
    )
    values = {
        "p": "P",
        "r": "R",
        "a": "A",
        "y": "Y",
        "n": "N",
        "t": "T",
        "c": "C",
        "i": "I",
        "e": "E",
        "k": "K",
        "l": "L",
    }
    task.render_template_fields(values)  # type: ignore[arg-type]
    rendered = task.trigger_kwargs()
    assert (rendered["project_id"], rendered["region"], rendered["job_name"]) == ("P", "R", "N")
    assert rendered["body"]["parameters"] == {"a": "A"}
    assert rendered["body"]["environment"] == {"x": [{"y": "Y"}]}
    assert (rendered["labels"], rendered["gcp_conn_id"]) == ({"team": "T"}, "C")
    assert (rendered["impersonation_chain"], rendered["expected_state"]) == (["I"], "E")
    assert (rendered["when_killed"], rendered["log_messages"]) == ("K", "L")


def test_task_that_stops_another_tasks_job_starts_on_a_worker_which_resolves_its_id() -> None:
    with DAG("dag", schedule=None):
        launch = flex(expected_state="running")
        stop = DataflowStopJobOperator(task_id="stop", **PLACE, job_id=launch.output["job_id"], how="drain")
    assert launch.worker_start_reason is None
    assert stop.worker_start_reason == "job_id= is the output of another task"


def test_none_for_messages_reaches_the_trigger() -> None:
    assert flex(log_messages=None).trigger_kwargs()["log_messages"] is None
    assert flex().trigger_kwargs()["log_messages"] == "WARNING"


def test_airflows_own_on_kill_stays_a_method() -> None:
    task = flex(on_kill="drain")
    assert task.on_kill.__func__ is BaseOperator.on_kill  # type: ignore[attr-defined]
    assert task.trigger_kwargs()["when_killed"] == "drain"


def test_link_is_registered_with_airflow() -> None:
    from deferrable_ops.provider import get_provider_info

    assert "deferrable_ops.operators.dataflow.DataflowJobLink" in get_provider_info()["extra-links"]
    assert DataflowJobLink().xcom_key == "_link_DataflowJobLink"
    assert [link.name for link in flex().operator_extra_links] == ["Dataflow job"]


class TaskInstance:
    """The task instance of a worker, which accepts XComs."""

    def __init__(self) -> None:
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value


def test_worker_that_ends_the_task_sets_the_id_and_the_link_again() -> None:
    task, ti = flex(), TaskInstance()
    assert DataflowJobLink().get_link(task, ti_key=None) == ""  # it only deferred the task so far
    event = {"outcome": {"outcome": "success", "value": {"id": "2026-1", "name": "load"}}}
    assert task.execute_complete({"ti": ti}, event) == {"id": "2026-1", "name": "load"}  # type: ignore[typeddict-item]
    assert ti.xcoms == {"job_id": "2026-1"}
    link = "https://console.cloud.google.com/dataflow/jobs/europe-west1/2026-1?project=my-project"
    assert DataflowJobLink().get_link(task, ti_key=None) == link


def test_worker_that_ends_the_task_of_a_classic_template_returns_the_id_and_sets_the_link() -> None:
    task, ti = DataflowTemplateOperator(task_id="load", **PLACE, template="gs://b/t"), TaskInstance()
    event = {"outcome": {"outcome": "success", "value": "2026-1"}}
    assert task.execute_complete({"ti": ti}, event) == "2026-1"  # type: ignore[typeddict-item]
    assert ti.xcoms == {"job_id": "2026-1"}
    assert "/2026-1?" in DataflowJobLink().get_link(task, ti_key=None)


def test_worker_that_fails_the_task_keeps_the_link_that_the_trigger_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(XCom, "get_value", lambda **_: "the trigger's link")
    task = flex()
    event = {"outcome": {"outcome": "failure", "reason": "the job failed", "retryable": True}}
    with pytest.raises(AirflowException, match="the job failed"):
        task.execute_complete({"ti": TaskInstance()}, event)  # type: ignore[typeddict-item]
    assert DataflowJobLink().get_link(task, ti_key=None) == "the trigger's link"
