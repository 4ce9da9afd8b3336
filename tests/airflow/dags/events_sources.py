"""Waits for events of all three sources. Where these are comes with the run's conf, as does what it calls itself."""

from __future__ import annotations

from airflow.sdk import DAG

from deferrable_ops.events import ChannelEvent, KafkaEvent, SqsEvent
from deferrable_ops.events.specifications import Match, Specification
from deferrable_ops.operators.events import EventSensor, MultiEventSensor

RUN = "{{ dag_run.conf['run'] }}"
SOURCES = ("channel", "kafka", "sqs")


def event(source: str, match: Match) -> Specification:
    """Return the event of one source."""
    if source == "channel":
        return ChannelEvent("{{ dag_run.conf['channel'] }}", match=match)
    if source == "kafka":
        return KafkaEvent("{{ dag_run.conf['kafka'] }}", match=match, kafka_conn_id="events_kafka")
    return SqsEvent("{{ dag_run.conf['sqs'] }}", dedicated=True, match=match, aws_conn_id="events_aws")


def kind(source: str, name: str) -> Specification:
    """Return the event of this kind that is for this run."""
    return event(source, {"run": RUN, "kind": name})


ENDS = {source: kind(source, "end") for source in SOURCES}

with DAG("events_all_sources", schedule=None):
    MultiEventSensor(task_id="wait", events=ENDS, since="{{ data_interval_start }}")

# What each task must come to is told by tests/faults/event_load.py, from what was sent.
with DAG("events_load", schedule=None, max_active_runs=100):
    for source in SOURCES:
        big = event(source, f"run == '{RUN}' && size > `90`")
        MultiEventSensor(
            task_id=f"all_{source}",
            events={"part": kind(source, "part"), "end": ENDS[source]},
            keep="all",
            timeout=600,
        )
        MultiEventSensor(
            task_id=f"last_{source}", events={"big": big, "end": ENDS[source]}, keep="last", timeout=600
        )
        EventSensor(
            task_id=f"first_{source}",
            event=event(source, f"run == '{RUN}' && size > `90` && n > `30`"),
            timeout=600,
        )
    MultiEventSensor(task_id="across", events=ENDS, timeout=600)
    MultiEventSensor(
        task_id="any_two", events=ENDS, condition="at_least(2, channel, kafka, sqs)", timeout=600
    )
    MultiEventSensor(task_id="one_or_other", events=ENDS, condition="channel & (kafka | sqs)", timeout=600)
