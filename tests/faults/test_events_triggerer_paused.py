"""Two triggerers on the same waits for events: the one that is paused comes back after the other has taken over."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from faults.support.arrivals import arrivals_at
from faults.support.triggerers import resume_all_but_the_supervisor

from real_airflow import RealAirflow, wait_until
from real_airflow.sources import all_sources
from real_kafka import RealKafka
from real_sqs import RealSqs

RUNS = 6


@pytest.mark.long
def test_waits_end_once_and_with_all_three_events_whichever_triggerer_took_them(
    airflow: RealAirflow, kafka_server: RealKafka, sqs_server: RealSqs
) -> None:
    sources = all_sources(airflow, kafka_server, sqs_server)
    names = [uuid.uuid4().hex for _ in range(RUNS)]
    where = {source: one.name for source, one in sources.items()}
    runs = [airflow.trigger("events_all_sources", {"run": name, **where}) for name in names]
    tasks = [run.task("wait") for run in runs]
    for task in tasks:
        wait_until(lambda task=task: "Waiting for" in task.log(), f"{task} to wait")

    def send(source: str, begin: int, end: int) -> None:
        sources[source].send(
            [[{"run": names[n], "kind": "end", "n": n, "from": source}] for n in range(begin, end)]
        )

    with arrivals_at(airflow, sources) as arrivals:
        send("kafka", 0, 2)
        send("sqs", 4, 6)
        arrivals.wait_for("kafka", 2)
        arrivals.wait_for("sqs", 2)
        airflow.pause(airflow.triggerer)
        second = airflow.add_triggerer()
        send("kafka", 2, 4)
        send("sqs", 0, 2)
        arrivals.wait_for("kafka", 4)
        arrivals.wait_for("sqs", 4)

        airflow.pause(second)
        send("kafka", 4, 6)
        send("channel", 0, 3)
        send("sqs", 2, 4)
        asyncio.run(resume_all_but_the_supervisor(airflow))
        arrivals.wait_for("kafka", RUNS)  # which the first has brought: it runs what the second took over
        arrivals.wait_for("sqs", RUNS)
        second.resume()
        airflow.triggerer.resume()
        send("channel", 3, 6)

        for number, (run, task) in enumerate(zip(runs, tasks, strict=True)):
            run.wait_for("success")
            came = {source: event["payload"] for source, event in task.xcom().items()}
            assert came == {
                source: {"run": names[number], "kind": "end", "n": number, "from": source}
                for source in sources
            }
            wait_until(lambda task=task: task.log().count("Waiting for") >= 2, f"{task}'s logs of both")
            assert [attempt.number for attempt in task.tries()] == [1]
            # Whose XCom the triggerer sent while its own supervisor stood still ends on a worker, and says so.
            ends_on_worker = "ends on a worker, because the triggerer could not set the XCom" in task.log()
            assert run.worker_processes() == ends_on_worker
        assert {source: len(arrivals.of(source)) for source in sources} == dict.fromkeys(sources, RUNS)
