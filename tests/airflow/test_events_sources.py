"""One task that waits for a channel, a Kafka topic and an SQS queue at once, on a real Airflow."""

from __future__ import annotations

import uuid

from real_airflow import RealAirflow, wait_until
from real_airflow.sources import all_sources
from real_kafka import RealKafka
from real_sqs import RealSqs


def test_wait_receives_an_event_of_each_source_without_a_worker(
    airflow: RealAirflow, kafka_server: RealKafka, sqs_server: RealSqs
) -> None:
    sources = all_sources(airflow, kafka_server, sqs_server)
    name = uuid.uuid4().hex
    run = airflow.trigger(
        "events_all_sources", {"run": name, **{key: one.name for key, one in sources.items()}}
    )
    task = run.task("wait").wait_for("deferred")
    others = [{"run": "another", "kind": "end"}, {"run": name, "kind": "part"}]
    sources["kafka"].send([others])
    sources["sqs"].send([[*others, {"run": name, "kind": "end", "n": 2}]])
    wait_until(
        lambda: "progress" in task.xcom_keys() and task.xcom("progress")["come"], "progress to be shown"
    )
    shown = task.xcom("progress")
    assert shown["come"] == {"sqs": 1}
    assert {shown["missing"]} <= {"channel and kafka", "kafka and channel"}

    sources["kafka"].send([[{"run": name, "kind": "end", "n": 1}]])
    sources["channel"].send([[*others, {"run": name, "kind": "end", "n": 0}]])

    run.wait_for("success")
    came = task.xcom()
    assert {key: event["payload"]["n"] for key, event in came.items()} == {"channel": 0, "kafka": 1, "sqs": 2}
    assert {key: event["source"] for key, event in came.items()} == {
        key: source.inbox_source for key, source in sources.items()
    }
    assert came["kafka"]["attributes"]["metadata"]["offset"] == 2
    assert run.worker_processes() == 0
    assert sqs_server.count(sources["sqs"].name) == 0
