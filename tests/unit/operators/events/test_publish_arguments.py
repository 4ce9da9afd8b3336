"""The arguments of a publishing task; wrong ones are refused when the DAG is parsed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator

from deferrable_ops.events import KafkaMessage, Merge, SqsMessage
from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.events import PublishEventOperator
from deferrable_ops.triggers.events.publish.trigger import PublishEventTrigger

QUEUE = "https://sqs.eu-west-1.amazonaws.com/123456789012/payments"
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {},
            "no destination is given; give one destination, as channel=, kafka= (a topic) or sqs= (a queue URL)",
        ),
        ({"kafka": "a", "sqs": QUEUE}, "kafka= and sqs= are given"),
        ({"kafka": "a", "payload": 1, "messages": [1]}, "payload= and messages= are given"),
        ({"kafka": "a", "file": "/a.txt", "files": ["/a.txt"]}, "file= and files= are given"),
        ({"kafka": "a b", "payload": 1}, "kafka=: topic='a b' is not allowed"),
        ({"kafka": "a", "payload": 1, "kafka_conn_id": ""}, "kafka=: kafka_conn_id=''"),
        ({"kafka": "a"}, "a tombstone needs a key"),
        ({"kafka": "a", "messages": [1, SqsMessage(1)]}, "messages[1] is a SqsMessage"),
        ({"kafka": "a", "payload": 1, "transactional": "no"}, "transactional='no' must be True or False"),
        ({"kafka": "a", "payload": 1, "key": 7}, "key=7 must be a non-empty string"),
        ({"kafka": "a", "payload": 1, "group_id": "g"}, "group_id= is allowed only with sqs="),
        ({"sqs": "payments", "payload": 1}, "sqs=: queue_url='payments' is not a queue's URL"),
        ({"sqs": "arn:aws:sqs:eu-west-1:1:q", "payload": 1}, "is an ARN"),
        ({"sqs": QUEUE}, "payload= is missing"),
        ({"sqs": QUEUE, "payload": 1, "key": "k"}, "key= is allowed only with kafka="),
        ({"channel": "a", "messages": [KafkaMessage(1)]}, "a channel accepts only plain payloads"),
        ({"channel": "a", "messages": ["x" * 300_000]}, "messages[0]: payload= has 300002 bytes"),
        ({"channel": "a", "messages": []}, "messages= is empty"),
        ({"channel": "a", "payload": 1, "select": "[]"}, "select= is allowed only with file= or files="),
        ({"channel": "a", "payload": 1, "merge": Merge("a")}, "merge= is allowed only with file= or files="),
        ({"channel": "a", "file": "a.txt"}, "file='a.txt' must be an absolute path"),
        ({"channel": "a", "file": "s3://bucket/a.txt"}, "is a URL"),
        ({"channel": "a", "file": ["/a.txt"]}, "must be the path of a file"),
        ({"channel": "a", "files": "/a.txt"}, "files= must be a list of at least one path"),
        ({"channel": "a", "files": []}, "files= must be a list of at least one path"),
        ({"channel": "a", "files": ["/a.txt", "/b.csv"]}, "the file '/b.csv' has an unknown suffix"),
        ({"channel": "a", "file": "/a.txt", "file_format": "csv"}, "file_format='csv' is unknown"),
        ({"channel": "a", "file": "/a.txt", "select": "[?a ="}, "select='[?a =' is not JMESPath"),
        ({"channel": "a", "file": "/a.txt", "merge": {"match": "a"}}, "merge= must be a Merge"),
    ],
)
def test_bad_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        PublishEventOperator(**{"task_id": "announce", **arguments})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kafka": "{{ params.topic }}", "messages": "{{ params.messages | tojson }}", "key": "{{ ds }}"},
        {
            "kafka": "a",
            "messages": [KafkaMessage({"d": "{{ ds }}"}, headers={"x": "{{ ds }}"}, partition="{{ 1 }}")],
        },
        {"sqs": "{{ params.queue }}", "messages": [SqsMessage("{{ ds }}", delay="{{ params.delay }}")]},
        {"channel": "a", "file": "/data/{{ ds }}", "file_format": "text"},
        {"channel": "a", "files": ["/data/{{ ds }}/*", "/data/a.json"], "select": "[?day == '{{ ds }}']"},
        {"channel": "a", "files": ["/data/a.json"], "merge": Merge({"day": "{{ ds }}"})},
    ],
)
def test_templates_are_rendered_at_run_time_and_need_no_worker(arguments: dict[str, Any]) -> None:
    with DAG("dag", schedule=None, start_date=START):
        operator = PublishEventOperator(**{"task_id": "announce", **arguments})
    assert operator.worker_start_reason is None
    kwargs = operator.trigger_kwargs()
    trigger = PublishEventTrigger(**kwargs)
    assert trigger.serialize()[1].items() >= kwargs.items()
    rendered = operator.render_template(
        kwargs,
        {
            "ds": "2026-11-21",
            "params": {"topic": "t", "messages": [{"a": 1}], "delay": 5, "queue": QUEUE},
        },
    )
    PublishEventTrigger(**rendered).validate()


def test_outputs_of_other_tasks_need_a_worker() -> None:
    with DAG("dag", schedule=None, start_date=START):
        up = BaseOperator(task_id="up")
        for name, arguments in enumerate(
            [
                {"messages": up.output},
                {"messages": [{"rows": up.output}]},
                {"messages": [KafkaMessage(1, key=up.output)]},
                {"files": up.output},
            ]
        ):
            operator = PublishEventOperator(**{"task_id": f"t{name}", "kafka": "a", **arguments})
            assert "is the output of another task" in (operator.worker_start_reason or "")


def test_connection_of_none_reaches_the_trigger() -> None:
    for conn_id in (None, "aws_other"):
        operator = PublishEventOperator(task_id="t", sqs=QUEUE, payload=1, aws_conn_id=conn_id)
        assert PublishEventTrigger(**operator.trigger_kwargs()).aws_conn_id == conn_id


def test_operator_is_exported_by_the_package() -> None:
    from deferrable_ops.operators import events
    from deferrable_ops.operators.events import publish

    assert events.PublishEventOperator is publish.PublishEventOperator
    assert "PublishEventOperator" in events.__all__
