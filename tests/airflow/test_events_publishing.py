"""Publishing on a real Airflow: to all destinations, without a worker, once also when the triggerer is killed."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from real_airflow import RealAirflow, wait_until
from real_airflow.sources import Source, all_sources
from real_kafka import RealKafka
from real_kafka.committed import committed
from real_sqs import RealSqs

# Nothing of these depends on the inbox's database.
once = pytest.mark.parametrize("started_airflow", ["postgres"], indirect=True)


@pytest.fixture
def sources(airflow: RealAirflow, kafka_server: RealKafka, sqs_server: RealSqs) -> dict[str, Source]:
    return all_sources(airflow, kafka_server, sqs_server)


@pytest.fixture
def conf(sources: dict[str, Source]) -> dict[str, str]:
    return {"run": uuid.uuid4().hex, **{name: source.name for name, source in sources.items()}}


def test_message_of_one_dag_releases_another_without_a_worker(
    airflow: RealAirflow, conf: dict[str, str]
) -> None:
    waiting = airflow.trigger("events_published", conf)
    waiting.task("wait").wait_for("deferred")
    publishing = airflow.trigger("events_publish", conf).wait_for("success")
    assert publishing.worker_processes() == 0
    assert publishing.task("to_channel").xcom()["count"] == 1
    to_kafka = publishing.task("to_kafka").xcom()
    assert (to_kafka["count"], to_kafka["topic"]) == (2, conf["kafka"])
    assert len(publishing.task("to_sqs").xcom()["message_ids"]) == 1

    waiting.wait_for("success")
    assert waiting.worker_processes() == 0
    came = waiting.task("wait").xcom()
    assert set(came) == {"channel", "kafka", "sqs"}
    published = {"run": conf["run"], "kind": "published"}
    assert [event["payload"] for event in came.values()] == [published] * 3


@once
@pytest.mark.long
def test_files_are_published_completely_and_once_when_the_triggerer_is_killed(
    airflow: RealAirflow, conf: dict[str, str], kafka_server: RealKafka, tmp_path: Path
) -> None:
    messages = [
        {"run": conf["run"], "n": n, "kind": f"kind-{n % 2}", "rows": 1, "text": "x" * 400}
        for n in range(20_000)
    ]
    for part in range(2):
        lines = map(json.dumps, messages[part * 10_000 : (part + 1) * 10_000])
        (tmp_path / f"part-{part}.jsonl").write_text("\n".join(lines))
    run = airflow.trigger("events_publish_files", {**conf, "files": f"{tmp_path}/*.jsonl"})
    wait_until(
        lambda: any(end > 0 for _, end in kafka_server.ends(conf["kafka"]).values()), "the first record"
    )
    airflow.triggerer.kill()
    airflow.start_component(airflow.triggerer)

    run.wait_for("success", timeout=180)
    assert run.worker_processes() == 0
    assert run.task("all").xcom()["count"] == 20_000
    found = [
        json.loads(one.value or b"")
        for part in committed(kafka_server, conf["kafka"]).values()
        for one in part
    ]
    assert [one["n"] for one in found] == list(range(20_000))
    assert run.task("merged").xcom()["count"] == 2
