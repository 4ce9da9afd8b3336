"""The launch request: the job's name, its labels, and the other fields of the body."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deferrable_ops.exceptions import InputError
from deferrable_ops.inbox import Attempt
from deferrable_ops.triggers.dataflow.request import (
    WAIT_LABEL,
    Kind,
    build_request,
    job_name,
    name_prefix,
    task_labels,
    valid_prefix,
)

WAIT = "0d6f9a52-3f0e-5c6b-9a86-6d1c1f0c2a11"


def built(kind: Kind, body: dict[str, Any], labels: dict[str, str] | None = None) -> dict[str, Any]:
    return build_request(
        kind, project_id="p", region="r", body=body, name="load-1", labels=labels, wait_id=WAIT
    )


@pytest.mark.parametrize(
    "prefix, begins",
    [
        ("load_orders", "load-orders-"),
        ("group.Load Orders", "group-load-orders-"),
        ("a", "a-"),
        ("x" * 70, "x" * 50 + "-"),
        ("x" * 49 + "_y", "x" * 49 + "-"),
    ],
)
def test_name_is_the_prefix_and_a_hash_of_the_attempt(prefix: str, begins: str) -> None:
    name = job_name(prefix, WAIT)
    assert re.fullmatch(re.escape(begins) + "[0-9a-f]{12}", name)
    assert name == job_name(prefix, WAIT)
    assert name != job_name(prefix, "another wait")


@given(st.text(max_size=80))
def test_every_name_is_valid_for_dataflow_or_refused(prefix: str) -> None:
    try:
        name = job_name(prefix, WAIT)
    except InputError:
        pass
    else:
        assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert len(name) <= 63


@pytest.mark.parametrize("prefix", ["2024_load", "-load", "laden-für", "", "a/b"])
def test_prefix_that_cannot_be_made_valid_is_refused_with_the_reason(prefix: str) -> None:
    with pytest.raises(InputError, match=r"job_name=.*begins with a letter from a to z"):
        valid_prefix(prefix)


@pytest.mark.parametrize(
    "given_name, body, prefix",
    [
        ("mine", {"jobName": "theirs"}, "mine"),
        (None, {"jobName": "camel"}, "camel"),
        (None, {"job_name": "snake"}, "snake"),
        (None, {"launchParameter": {"jobName": "wrapped"}}, "wrapped"),
        (None, {}, "task"),
    ],
)
def test_prefix_is_the_argument_or_the_bodys_name_or_the_tasks_id(
    given_name: str | None, body: dict[str, Any], prefix: str
) -> None:
    assert name_prefix(given_name, body, "task") == prefix


@pytest.mark.parametrize("labels_key", ["additionalUserLabels", "additional_user_labels"])
@pytest.mark.parametrize("name_key", ["jobName", "job_name"])
def test_flex_body_keeps_all_other_fields(labels_key: str, name_key: str) -> None:
    body = {
        name_key: "theirs",
        "container_spec_gcs_path": "gs://b/t.json",
        "parameters": {"a": "1"},
        "environment": {"max_workers": 3, labels_key: {"team": "data", "env": "test"}},
        "update": False,
    }
    assert built("flex", body, {"env": "prod"}) == {
        "projectId": "p",
        "location": "r",
        "launchParameter": {
            "jobName": "load-1",
            "container_spec_gcs_path": "gs://b/t.json",
            "parameters": {"a": "1"},
            "environment": {
                "max_workers": 3,
                "additionalUserLabels": {"team": "data", "env": "prod", WAIT_LABEL: WAIT},
            },
        },
    }
    assert body["environment"][labels_key] == {"team": "data", "env": "test"}  # the task's own body stays


def test_labels_of_the_task_are_valid_and_may_be_replaced() -> None:
    attempt = Attempt("id", 1, "My.DAG", "manual__2026-01-01T00:00:00+00:00", "group.Load" + "x" * 70)
    labels = task_labels(attempt)
    assert labels == {
        "airflow-dag": "my-dag",
        "airflow-run": "manual__2026-01-01t00-00-00-00-00",
        "airflow-task": ("group-load" + "x" * 70)[:63],
    }
    request = build_request(
        "flex",
        project_id="p",
        region="r",
        body={"environment": {"additionalUserLabels": {"airflow-dag": "body"}}},
        name="load-1",
        labels={"airflow-run": "argument"},
        wait_id=WAIT,
        task_labels=labels,
    )
    assert request["launchParameter"]["environment"]["additionalUserLabels"] == {
        "airflow-dag": "body",
        "airflow-run": "argument",
        "airflow-task": labels["airflow-task"],
        WAIT_LABEL: WAIT,
    }


@pytest.mark.parametrize("wrapper", ["launchParameter", "launch_parameter"])
def test_body_may_be_a_whole_flex_request(wrapper: str) -> None:
    inner = {"containerSpecGcsPath": "gs://b/t.json"}
    whole = built("flex", {wrapper: inner, "projectId": "p", "validateOnly": False})
    assert whole == built("flex", inner)


def test_classic_body_is_split_into_path_and_parameters() -> None:
    body = {"gcs_path": "gs://b/t", "parameters": {"a": "1"}, "environment": {"zone": "z"}}
    request = built("classic", body)
    assert request["gcsPath"] == "gs://b/t"
    assert request["launchParameters"] == {
        "jobName": "load-1",
        "parameters": {"a": "1"},
        "environment": {"zone": "z", "additionalUserLabels": {WAIT_LABEL: WAIT}},
    }
    assert built("classic", {"gcs_path": "gs://b/t", "launch_parameters": {}})["gcs_path"] == "gs://b/t"


def test_numbers_and_booleans_in_parameters_are_sent_as_strings() -> None:
    body = {"containerSpecGcsPath": "gs://b/t", "parameters": {"n": 3, "x": 0.5, "on": True, "s": "s"}}
    parameters = built("flex", body)["launchParameter"]["parameters"]
    assert parameters == {"n": "3", "x": "0.5", "on": "true", "s": "s"}
