from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from airflow.sdk.definitions._internal.templater import SandboxedEnvironment, Templater
from hypothesis import given
from hypothesis import strategies as st

from deferrable_ops.events import ChannelEvent, KafkaEvent, SqsEvent
from deferrable_ops.events.specifications import (
    Specification,
    specification_from_json,
    specification_to_json,
)
from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.templates import find_templates

QUEUE = "https://sqs.eu-west-1.amazonaws.com/123456789012/payments"

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
equal = st.recursive(
    st.dictionaries(st.text(), leaves | st.lists(leaves, max_size=3), min_size=1, max_size=3),
    lambda children: st.dictionaries(st.text(), children | leaves, min_size=1, max_size=3),
    max_leaves=8,
).filter(lambda match: "{{" not in str(match) and "{%" not in str(match))
match = st.none() | st.just("status == 'done'") | equal
specifications = (
    st.builds(ChannelEvent, names, match=match)
    | st.builds(KafkaEvent, names, match=match, kafka_conn_id=names)
    | st.builds(SqsEvent, st.just(QUEUE), dedicated=st.just(True), match=match, aws_conn_id=st.none() | names)
)


class Task(Templater):
    """Renders templates like Airflow's operators on a worker and triggers in a triggerer, which share this class."""

    template_fields = ("events",)
    template_ext = ()

    def __init__(self, events: Any) -> None:
        self.events = events

    def render(self, **context: Any) -> Any:
        self._do_render_template_fields(self, self.template_fields, context, SandboxedEnvironment(), set())
        return self.events


class Output:
    """Return the output of another task, as passed to an operator."""

    def iter_references(self) -> list[Any]:
        return []


@given(specifications)
def test_a_specification_is_serialized_as_json(specification: Specification) -> None:
    sent = json.loads(json.dumps(specification_to_json(specification)))
    assert specification_from_json(sent) == specification
    assert pickle.loads(pickle.dumps(specification)) == specification


def test_rendering_does_not_change_the_specification() -> None:
    orders = KafkaEvent(
        "etl-{{ env }}", match={"partition": "{{ ds }}", "deep": {"list": ["{{ ds }}", 1, None]}, "rows": 5}
    )
    task = Task({"orders": specification_to_json(orders)})
    assert sorted(find_templates(task.events)) == ["etl-{{ env }}", "{{ ds }}", "{{ ds }}"]

    rendered = specification_from_json(task.render(ds="2026-01-01", env="prod")["orders"])

    assert rendered == KafkaEvent(
        "etl-prod", match={"partition": "2026-01-01", "deep": {"list": ["2026-01-01", 1, None]}, "rows": 5}
    )
    assert orders.topic == "etl-{{ env }}"
    assert orders.match == {"partition": "{{ ds }}", "deep": {"list": ["{{ ds }}", 1, None]}, "rows": 5}


def test_a_specification_is_immutable() -> None:
    given_match = {"a": [1]}
    specification = ChannelEvent("signoff", match=given_match)
    given_match["a"].append(2)
    assert specification.match == {"a": [1]}
    specification_to_json(specification)["match"]["a"].append(3)
    assert specification.match == {"a": [1]}
    with pytest.raises(FrozenInstanceError):
        specification.name = "other"  # type: ignore[misc]


def test_templates_are_checked_after_rendering() -> None:
    ChannelEvent("{{ params.channel }}", match="status == '{{ params.status }}' &&")
    with pytest.raises(InputError, match="name="):
        specification_from_json({"type": "channel", "name": "not a channel"})
    with pytest.raises(InputError, match="not JMESPath"):
        specification_from_json({"type": "channel", "name": "signoff", "match": "status == 'done' &&"})


def test_output_of_another_task_stays_unchanged() -> None:
    output = Output()
    specification = KafkaEvent("orders", match={"id": output})  # type: ignore[dict-item]
    assert specification_to_json(specification)["match"]["id"] is output
    assert specification_to_json(ChannelEvent(output))["name"] is output  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ChannelEvent(""), "name=''"),
        (lambda: ChannelEvent("a/b"), "name='a/b'"),
        (lambda: ChannelEvent("x" * 129), "name="),
        (lambda: ChannelEvent(5), "name=5"),
        (lambda: KafkaEvent(".."), "topic='..'"),
        (lambda: KafkaEvent("a b"), "topic='a b'"),
        (lambda: KafkaEvent("x" * 250), "topic="),
        (lambda: KafkaEvent("a", kafka_conn_id=""), "kafka_conn_id=''"),
        (lambda: SqsEvent(QUEUE, dedicated=True, aws_conn_id=""), "aws_conn_id=''"),
        (lambda: SqsEvent("arn:aws:sqs:eu-west-1:1:q", dedicated=True), "is an ARN; give the queue's URL"),
        (lambda: SqsEvent("payments", dedicated=True), "is not a queue's URL"),
        (lambda: SqsEvent("https://[", dedicated=True), "is not a queue's URL"),
        (lambda: SqsEvent("https://sqs.eu-west-1.amazonaws.com/", dedicated=True), "is not a queue's URL"),
        (lambda: SqsEvent("https://me:secret@sqs.local/1/q", dedicated=True), "aws_conn_id="),
        (lambda: ChannelEvent("a", match=5), "match=5 must be a dict"),
        (lambda: ChannelEvent("a", match={}), "match= is an empty dict"),
        (lambda: ChannelEvent("a", match={"b": {}}), r"match=\['b'\] is an empty dict"),
        (lambda: ChannelEvent("a", match={1: 2}), "has the key 1"),
        (lambda: ChannelEvent("a", match={"{{ ds }}": 2}), "renders only values"),
        (lambda: ChannelEvent("a", match={"b": object()}), r"match=\['b'\] is a object"),
        (lambda: ChannelEvent("a", match={"b": [float("nan")]}), r"match=\['b'\]\[0\] is nan"),
        (lambda: ChannelEvent("a", match=""), "not JMESPath"),
        (lambda: ChannelEvent("a", match="status = 'done'"), "not JMESPath"),
        (lambda: ChannelEvent("a", match="(" * 5000), "match="),
        (lambda: ChannelEvent("a", match="lenght(items) > `1`"), r"lenght\(\), which JMESPath does not have"),
        (
            lambda: ChannelEvent("a", match="x[?contains(@)]"),
            r"contains\(\) with 1 arguments, but the function takes 2",
        ),
        (lambda: ChannelEvent("a", match="not_null()"), r"at least 1"),
    ],
)
def test_a_wrong_argument_is_named(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


def test_a_match_nested_too_deeply_is_refused() -> None:
    match: Any = 1
    for _ in range(30):
        match = {"a": match}
    with pytest.raises(InputError, match="deeper than 20 levels"):
        ChannelEvent("a", match=match)


def test_a_queue_that_is_not_dedicated_is_refused_with_the_fix() -> None:
    with pytest.raises(InputError, match=r"dedicated=True is missing.*SNS topic.*fan-out"):
        SqsEvent(QUEUE)
    with pytest.raises(InputError, match="dedicated=True is missing"):
        SqsEvent(QUEUE, dedicated=1)  # type: ignore[arg-type]


def test_credentials_of_a_queues_url_stay_out_of_the_error() -> None:
    with pytest.raises(InputError) as refused:
        SqsEvent("https://me:secret@sqs.local/1/q", dedicated=True)
    assert "secret" not in str(refused.value)


def test_different_sources_have_different_names() -> None:
    assert ChannelEvent("a").source == "channel:a"
    assert KafkaEvent("a").source == "kafka:kafka_default/a"
    assert SqsEvent(QUEUE, dedicated=True).source == "sqs:arn:aws:sqs:eu-west-1:123456789012:payments"


def test_source_of_a_templated_queue_url_can_be_shown() -> None:
    url = "https://{{ var.value.host }}[/1/payments"
    assert SqsEvent(url, dedicated=True).source == f"sqs:{url}"


@pytest.mark.parametrize(
    "data", [None, {}, {"type": "pigeon"}, {"type": "kafka"}, "kafka", {"type": ["kafka"]}]
)
def test_invalid_specification_is_refused(data: Any) -> None:
    with pytest.raises(InputError):
        specification_from_json(data)
    with pytest.raises(InputError, match="is not an event"):
        specification_to_json(data)


def test_unknown_keys_of_another_version_are_ignored() -> None:
    assert specification_from_json({"type": "channel", "name": "a", "newer": 1}) == ChannelEvent("a")
