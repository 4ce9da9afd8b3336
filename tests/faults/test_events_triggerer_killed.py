"""A triggerer killed with SIGKILL, again and again, while events flow: each wait ends with the right ones."""

from __future__ import annotations

import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from faults.support.arrivals import arrivals_at
from faults.support.event_load import EACH, Event, decoys_for, events_for, payloads, wrong_outcomes

from real_airflow import RealAirflow, Run
from real_airflow.sources import all_sources
from real_kafka import RealKafka
from real_sqs import RealSqs

TASKS = 12
# (runs, kills): 60 waits. `--long` has 300 waits, 10,000 events and five kills.
PART, FULL = (5, 1), (25, 5)


@pytest.mark.both_databases
@pytest.mark.timeout(600)
def test_waits_end_with_the_right_ones_of_thousands_of_events_although_the_triggerer_is_killed_again_and_again(
    airflow: RealAirflow, kafka_server: RealKafka, sqs_server: RealSqs, full_load: bool
) -> None:
    runs, kills = FULL if full_load else PART
    sources = all_sources(airflow, kafka_server, sqs_server)
    names = [uuid.uuid4().hex for _ in range(runs)]
    for source, one in sources.items():
        one.send([decoys_for(name, source) for name in names])
    sent = {
        name: {source: events_for(name, source, seed) for source in sources}
        for seed, name in enumerate(names)
    }
    where = {source: one.name for source, one in sources.items()}
    started = {name: airflow.trigger("events_load", {"run": name, **where}) for name in names}
    for run in started.values():
        run.wait_for("running")  # from then on events count

    with arrivals_at(airflow, sources) as arrivals, ThreadPoolExecutor(len(sources)) as pool:
        for part in range(kills + 1):
            sending = [
                pool.submit(one.send, [share(sent[name][source], part, kills + 1) for name in names])
                for source, one in sources.items()
            ]
            if part < kills:
                arrivals.wait_for_more("kafka", "sqs")  # which only a triggerer brings
                airflow.triggerer.kill()
            for done in sending:
                done.result()
            if part < kills:
                airflow.start_component(airflow.triggerer)

        wrong = [
            task
            for name, run in started.items()
            for task in wrong_tasks(run.wait_for("success", timeout=240), sent[name])
        ]
        for source in sources:
            came = Counter((event.payload["run"], event.payload["n"]) for event in arrivals.of(source))
            assert set(came.values()) == {1}, f"{source}: {came.most_common(3)}"
        assert len(arrivals.of("channel")) == runs * (EACH["channel"] + 2)
    assert not wrong, "\n".join(wrong)


def share(events: list[Event], part: int, parts: int) -> list[Event]:
    """Return one of so many parts of what one run is sent by one source."""
    return events[len(events) * part // parts : len(events) * (part + 1) // parts]


def wrong_tasks(run: Run, sent: dict[str, list[Event]]) -> list[str]:
    """Return which tasks of a run came to something else than they must, and check that no worker had to do with it."""
    came = {task_id: payloads(run.task(task_id).xcom()) for task_id in run.task_states()}
    assert len(came) == TASKS
    assert run.worker_processes() == 0
    return wrong_outcomes(came, sent)
