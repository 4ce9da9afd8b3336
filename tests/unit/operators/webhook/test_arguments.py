"""Wrong arguments raise an error that names the argument and the fix, when the DAG is parsed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import task

from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.webhook import WebhookOperator, WebhookOperatorMixin, WebhookSensor
from deferrable_ops.triggers.webhook.trigger import WebhookTrigger

URL = "https://jobs.example.com/train"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"url": None}, "url= is missing"),
        ({"url": "jobs.example.com"}, "url= must be a full http:// or https:// URL"),
        ({"url": "ftp://jobs.example.com"}, "url= must be a full http"),
        ({"url": 7}, "url= must be a full http"),
        ({"http_conn_id": "jobs"}, "url= and http_conn_id= exclude each other"),
        ({"path": "/train"}, "path= needs http_conn_id="),
        ({"method": "FETCH"}, "method='FETCH' is not supported; use one of DELETE, GET, PATCH, POST, PUT"),
        ({"json": {"when": print}}, "json['when']= is a function"),
        ({"json": [object()]}, "json[0]= holds a object, which is not plain data"),
        ({"json": {1: 2}}, "keys must be strings"),
        ({"json": float("nan")}, "json= is nan"),
        ({"json": 1, "data": "1"}, "json= and data= exclude each other"),
        ({"data": b"bytes"}, "data= must be a string or a dict of strings"),
        ({"headers": {"X-Count": 1}}, "headers= must be a dict of strings"),
        ({"success_when": "state = 'done'"}, "success_when=\"state = 'done'\" is not JMESPath"),
        (
            {"success_when": 'state == "done"'},
            "write 'done' for the text, or done without quotes for the field",
        ),
        ({"failure_when": "fail(state)"}, "failure_when= calls fail(), which JMESPath does not have"),
        ({"failure_when": 1}, "failure_when= must be a string with a JMESPath expression"),
        ({"result": "metrics["}, "result='metrics[' is not JMESPath"),
        ({"timeout": -1}, "timeout=-1 must be above zero"),
        ({"timeout": timedelta(0)}, "timeout=0.0 must be above zero"),
        ({"timeout": "6h"}, "timeout='6h' is not a duration"),
        ({"heartbeat_timeout": True}, "heartbeat_timeout=True is not a duration"),
        ({"launch_timeout": float("inf")}, "launch_timeout=inf must be above zero and finite"),
        ({"cancel_request": "https://x"}, "cancel_request= must be a dict"),
        ({"cancel_request": {"uri": "https://x"}}, "unknown key 'uri'"),
        ({"cancel_request": {"method": "DELETE"}}, "cancel_request= has neither 'url' nor"),
        ({"cancel_request": {"url": "x"}}, "cancel_request.url= must be a full http"),
        (
            {"url": URL + "/${callbak_url}"},
            "url= has ${callbak_url}, which is not a placeholder; write ${callback_url}",
        ),
        (
            {"json": {"to": ["${Callback_URL}"]}},
            "json['to']= has ${Callback_URL}, which is not a placeholder",
        ),
        (
            {"headers": {"X": "${wait-id}"}},
            "headers['X']= has ${wait-id}, which is not a placeholder; write ${wait_id}",
        ),
        ({"cancel_request": {"url": URL, "json": "${waitid}"}}, "cancel_request.json= has ${waitid}"),
        ({"cancel_request": {"url": URL, "json": print}}, "cancel_request.json= is a function"),
    ],
)
def test_wrong_argument_is_named_with_its_fix(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        WebhookOperator(**{"task_id": "job", "url": URL, **arguments})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": "{{ var.value.jobs }}/train"},
        {"url": None, "http_conn_id": "jobs", "path": "/train"},
        {"json": {"a": [1, 2.5, None, True, {"b": "${callback_url}"}]}},
        {"data": {"field": "value"}},
        {"headers": {"Authorization": "Bearer {{ conn.jobs.password }}"}},
        {"success_when": "{{ params.when }}"},
        {"timeout": 3600, "heartbeat_timeout": timedelta(minutes=1), "launch_timeout": 10.5},
        {"cancel_request": {"http_conn_id": "jobs", "path": "/cancel/${wait_id}"}},
    ],
)
def test_valid_arguments_are_accepted(arguments: dict[str, Any]) -> None:
    WebhookOperator(**{"task_id": "job", "url": URL, **arguments})


def test_sensor_and_mixin_validate_their_arguments() -> None:
    with pytest.raises(InputError, match="success_when"):
        WebhookSensor(task_id="wait", success_when="a =")

    class Async(WebhookOperatorMixin, PythonOperator): ...

    with pytest.raises(InputError, match="callback_timeout=0 must be above zero"):
        Async(task_id="work", python_callable=print, callback_timeout=0)


def test_mixin_refuses_a_template_that_the_operator_does_not_render() -> None:
    class Async(WebhookOperatorMixin, PythonOperator): ...

    class Rendering(Async):
        template_fields = (*PythonOperator.template_fields, "cancel_request")

    cancel = {"url": "https://jobs.example.com/{{ ds }}"}
    with pytest.raises(
        InputError, match=r"cancel_request= has the template .* add 'cancel_request' to its template_"
    ):
        Async(task_id="job", python_callable=print, cancel_request=cancel)
    Rendering(task_id="job", python_callable=print, cancel_request=cancel)

    @task.webhook(cancel_request=cancel, templates_dict={"date": "{{ ds }}"})
    def launch(callback_url: str) -> None: ...

    rendered = launch().operator
    rendered.render_template_fields({"ds": "2026-01-01"})
    assert rendered.cancel_request == {"url": "https://jobs.example.com/2026-01-01"}
    assert rendered.templates_dict == {"date": "2026-01-01"}


def test_trigger_refuses_an_expression_that_was_not_rendered() -> None:
    with pytest.raises(InputError, match=r"success_when=.* is not JMESPath"):
        WebhookTrigger(success_when="{{ params.done }}").validate()


def test_taskflow_function_must_have_the_url_parameter() -> None:
    @task.webhook
    def launch(model: str) -> None: ...

    with pytest.raises(InputError, match="has no parameter callback_url"):
        launch("churn")


def test_unknown_argument_is_an_error() -> None:
    with pytest.raises(TypeError, match="uri"):
        WebhookOperator(task_id="job", url=URL, uri="x")
