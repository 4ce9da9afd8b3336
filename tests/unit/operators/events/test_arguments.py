"""Wrong arguments fail when the DAG is parsed; valid ones reach the trigger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pendulum
import pytest
from airflow.sdk import DAG, Asset, BaseOperator, CronDataIntervalTimetable, DeltaTriggerTimetable
from airflow.sdk.exceptions import TaskDeferred
from airflow.serialization.serialized_objects import DagSerialization

from deferrable_ops.events import ChannelEvent, KafkaEvent, SqsEvent
from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.events import EventSensor, MultiEventSensor, PublishEventOperator
from deferrable_ops.testing import memory_inbox
from deferrable_ops.triggers.events.arguments import parse_events
from deferrable_ops.triggers.events.trigger import EventsTrigger

SIGNOFF = ChannelEvent("signoff", match={"run": "{{ run_id }}"})
EVENTS = {"orders": KafkaEvent("etl", match={"day": "{{ ds }}"}), "signoff": SIGNOFF}
START = datetime(2026, 11, 20, tzinfo=UTC)


def multi(**arguments: Any) -> MultiEventSensor:
    return MultiEventSensor(**{"task_id": "ready", "events": EVENTS, **arguments})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"events": None}, "events=None must be a dict of names and events"),
        ({"events": [SIGNOFF]}, "must be a dict of names and events"),
        ({"events": {}}, "events= is empty; name at least one event"),
        ({"events": {"1st": SIGNOFF}}, "events= has the invalid name '1st'"),
        ({"events": {"not": SIGNOFF}}, "is reserved in condition="),
        ({"events": {"a": "signoff"}}, "events['a']: 'signoff' is not an event; give a ChannelEvent"),
        ({"condition": "orders & payments"}, "events= has no name 'payments'"),
        ({"condition": "not orders"}, "'not' is not supported"),
        ({"condition": "at_least(3, orders, signoff)"}, "can never be true"),
        ({"condition": "{{ params.when }}"}, "cannot be a template"),
        ({"keep": "best"}, "keep='best' is invalid; give 'first', 'last' or 'all'"),
        ({"since": "yesterday"}, "since='yesterday' is not a date and time; give"),
        ({"since": 5}, "since=5 is not a date and time"),
        ({"timeout": 0}, "timeout=0 must be above zero"),
        ({"timeout": timedelta(seconds=-1)}, "must be above zero"),
        ({"timeout": "soon"}, "timeout='soon'"),
        ({"timeout": None}, "timeout=None is invalid; give a timedelta"),
        ({"until_next_interval": "yes"}, "until_next_interval='yes' must be True or False"),
        ({"soft_fail": 1}, "soft_fail=1 must be True or False"),
    ],
)
def test_bad_argument_is_named_with_its_fix(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        multi(**arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize("argument", ["events", "condition", "keep"])
def test_sensor_for_one_event_refuses_arguments_for_several(argument: str) -> None:
    with pytest.raises(InputError, match=f"EventSensor has no {argument}=, because it waits for one event"):
        EventSensor(task_id="signed", event=SIGNOFF, **{argument: "x"})


@pytest.mark.parametrize(
    "schedule",
    [None, "@once", "@continuous", [Asset("a")]],
    ids=["none", "once", "continuous", "assets"],
)
def test_unknown_next_interval_is_refused(schedule: Any) -> None:
    with (
        DAG("dag", schedule=schedule, start_date=START, max_active_runs=1),
        pytest.raises(InputError, match="until_next_interval=True cannot be used in this DAG"),
    ):
        multi(until_next_interval=True)


@pytest.mark.parametrize(
    "schedule, told",
    [
        ("0 6 * * *", {"cron": "0 6 * * *"}),
        ("@daily", {"cron": "0 0 * * *"}),
        (CronDataIntervalTimetable("0 6 * * *", timezone="UTC"), {"cron": "0 6 * * *"}),
        (timedelta(hours=2), {"seconds": 7200.0}),
        (DeltaTriggerTimetable(timedelta(hours=3)), {"seconds": 10_800.0}),
    ],
    ids=str,
)
def test_next_interval_is_serialized_as_the_schedule(schedule: Any, told: dict[str, Any]) -> None:
    with DAG("dag", schedule=schedule, start_date=START):
        task = multi(until_next_interval=True)
    assert task.trigger_kwargs()["next_interval"] == told
    assert "next_interval" not in multi().trigger_kwargs()


def test_everything_reaches_the_trigger_through_the_serialized_dag() -> None:
    zone = pendulum.timezone("Europe/Berlin")
    with DAG("dag", schedule="@daily", start_date=datetime(2026, 1, 1, tzinfo=zone)) as dag:
        multi(condition="orders | signoff", keep="all", since="{{ data_interval_start }}", timeout=60.0)
        EventSensor(task_id="2_signed", event=SIGNOFF, timeout="0 6 * * *", soft_fail=True)
    tasks = DagSerialization.from_dict(DagSerialization.to_dict(dag)).task_dict
    several, one = tasks["ready"].start_trigger_args, tasks["2_signed"].start_trigger_args
    assert several.trigger_cls == EventsTrigger.classpath
    assert several.timeout == timedelta(seconds=60)
    trigger = EventsTrigger(**decoded(several.trigger_kwargs))
    assert trigger.events == {
        "orders": {
            "type": "kafka",
            "topic": "etl",
            "match": {"day": "{{ ds }}"},
            "kafka_conn_id": "kafka_default",
        },
        "signoff": {"type": "channel", "name": "signoff", "match": {"run": "{{ run_id }}"}},
    }
    assert (trigger.condition, trigger.keep, trigger.since) == (
        "orders | signoff",
        "all",
        "{{ data_interval_start }}",
    )
    assert (trigger.timezone, trigger.single, trigger.soft_fail) == ("Europe/Berlin", False, False)
    single = EventsTrigger(**decoded(one.trigger_kwargs))
    assert (single.cron, single.single, single.soft_fail) == ("0 6 * * *", True, True)
    # The name in messages.
    assert list(parse_events(single.events)) == ["_2_signed"]


def decoded(kwargs: Any) -> dict[str, Any]:
    from airflow.serialization.serialized_objects import BaseSerialization

    value: dict[str, Any] = BaseSerialization.deserialize(kwargs)
    return value


def test_tasks_start_in_the_triggerer_unless_they_need_another_tasks_output() -> None:
    with DAG("dag", schedule=None, start_date=START):
        up = BaseOperator(task_id="up")
        assert multi(since="{{ dag_run.start_date }}").worker_start_reason is None
        needing = EventSensor(task_id="a", event=ChannelEvent("x", match={"id": up.output}))
        assert needing.worker_start_reason == "events= is the output of another task"
        pulling = EventSensor(task_id="b", event=ChannelEvent("x", match={"id": "{{ ti.xcom_pull('up') }}"}))
        assert "ti.xcom_pull" in str(pulling.worker_start_reason)


def test_rendering_one_task_does_not_change_a_shared_specification() -> None:
    with DAG("dag", schedule=None, start_date=START):
        one, other = (EventSensor(task_id=name, event=SIGNOFF) for name in ("one", "other"))
    one.render_template_fields({"run_id": "r1"})  # type: ignore[typeddict-item]
    assert one.events["one"]["match"] == {"run": "r1"}
    assert other.events["other"]["match"] == {"run": "{{ run_id }}"}
    assert SIGNOFF.match == {"run": "{{ run_id }}"}


async def test_worker_passes_the_runs_start_to_the_trigger() -> None:
    times = {"start_date": START, "data_interval_start": None, "data_interval_end": None}
    ti = SimpleNamespace(
        id="01a1fd9a-991e-7f0c-8071-3e438f570c00",
        try_number=1,
        dag_id="dag",
        run_id="run",
        task_id="ready",
        map_index=3,
    )
    async with memory_inbox():
        with pytest.raises(TaskDeferred) as deferred:
            multi().execute({"ti": ti, "dag_run": SimpleNamespace(**times)})  # type: ignore[typeddict-item]
    trigger = deferred.value.trigger
    assert isinstance(trigger, EventsTrigger)
    assert trigger.run_times == {"start": START.isoformat(), "interval_start": None, "interval_end": None}
    assert trigger.serialize()[1]["attempt"]["map_index"] == 3


def test_mapped_sensor_is_created_for_each_event() -> None:
    with DAG("dag", schedule=None, start_date=START) as dag:
        EventSensor.partial(task_id="each", timeout=60.0).expand(event=[ChannelEvent("a"), ChannelEvent("b")])
    assert DagSerialization.from_dict(DagSerialization.to_dict(dag)).get_task("each").is_mapped
    unmapped = dag.get_task("each").unmap({"event": ChannelEvent("b")})
    assert unmapped.events == {"each": {"type": "channel", "name": "b", "match": None}}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"channel": "a b"}, "name='a b' is not allowed"),
        ({"channel": None}, "give one destination"),
        ({"payload": print}, "payload= is a builtin_function_or_method, which is not plain data"),
        ({"payload": {"a": {1: 2}}}, "payload=['a'] has the key 1"),
        ({"payload": [float("nan")]}, "payload=[0] is nan"),
        ({"payload": "x" * 300_000}, "publish a reference to the data instead"),
        ({"kafka": "topic"}, "channel= and kafka= are given"),
    ],
)
def test_bad_argument_of_a_publisher_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, TypeError)) as caught:
        PublishEventOperator(**{"task_id": "announce", "channel": "loads", **arguments})
    assert message in str(caught.value)


def test_publisher_checks_templates_and_outputs_at_run_time() -> None:
    with DAG("dag", schedule=None, start_date=START):
        up = BaseOperator(task_id="up")
        templated = PublishEventOperator(
            task_id="a", channel="{{ params.channel }}", payload={"day": ["{{ ds }}"]}
        )
        assert templated.worker_start_reason is None
        fed = PublishEventOperator(task_id="b", channel="loads", payload={"rows": [up.output]})
        assert fed.worker_start_reason == "payload= is the output of another task"


def test_event_of_every_source_can_be_waited_for_at_parse_time() -> None:
    queue = SqsEvent("https://sqs.eu-west-1.amazonaws.com/1/q", dedicated=True)
    assert EventSensor(task_id="paid", event=queue).events["paid"]["type"] == "sqs"
