"""An upgrade while tasks wait: the release before the newest migration runs beside this release, on another host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from deferrable_ops.inbox.database.schema import HEAD, alembic_version
from real_airflow import (
    Component,
    Hosts,
    OutsideService,
    Postgres,
    RealAirflow,
    Run,
    extract_older_release,
    postgres_database,
    wait_until,
)

EACH = 10  # waits per triggerer
DAG = """
from airflow.sdk import DAG
from deferrable_ops.operators.webhook import WebhookOperator

with DAG("mixed", schedule=None, max_active_runs=100):
    WebhookOperator(
        task_id="job",
        url="{{ dag_run.conf['service'] }}/job",
        json={"number": "{{ dag_run.conf['number'] }}"},
        cancel_request={"url": "{{ dag_run.conf['service'] }}/cancel/${wait_id}", "method": "DELETE"},
    )
"""
# Each triggerer has room for its own waits only, so that the other release cannot take them all.
NEW = {"PYTHONPATH": "", "AIRFLOW__TRIGGERER__CAPACITY": str(EACH)}
ROOM_FOR_ALL = {"AIRFLOW__TRIGGERER__CAPACITY": str(2 * EACH)}

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


@pytest.fixture
def airflow(
    new_postgres: Callable[[dict[str, str]], Postgres], hosts: Hosts, tmp_path: Path
) -> Iterator[RealAirflow]:
    """An Airflow with the older release in all components."""
    older, dags, home = tmp_path / "older", tmp_path / "dags", tmp_path / "home"
    for folder in (older, dags, home):
        folder.mkdir()
    (dags / "mixed.py").write_text(DAG)
    settings = {"PYTHONPATH": str(extract_older_release(older)), "AIRFLOW__TRIGGERER__CAPACITY": str(EACH)}
    database = postgres_database(new_postgres({"fsync": "off"}))
    airflow = RealAirflow(home, database, [dags], settings, hosts)
    try:
        airflow.start(api_server_first=True)
        yield airflow
    finally:
        airflow.stop()


def test_triggerers_of_two_releases_finish_each_others_waits(
    airflow: RealAirflow, new_service: Callable[[], OutsideService]
) -> None:
    outside = new_service().start()
    assert schema_version(airflow) < HEAD, "the components do not run the older release"
    old = newest_triggerer(airflow)
    runs = launch(airflow, outside, range(EACH))
    assert triggerers(runs) == {old}

    for component in (airflow.api_server, airflow.scheduler, airflow.dag_processor):
        restart(airflow, component, NEW)
    assert schema_version(airflow) == HEAD
    beside = airflow.add_triggerer(NEW)
    new = newest_triggerer(airflow)
    runs += launch(airflow, outside, range(EACH, 2 * EACH))
    assert triggerers(runs[:EACH]) == {old}
    assert triggerers(runs[EACH:]) == {new}

    # The older release opens the newer tables once more.
    restart(airflow, airflow.triggerer)
    old = newest_triggerer(airflow)
    wait_until(lambda: triggerers(runs) == {old, new}, "the restarted triggerer to run its waits", 120)
    end(outside, runs, [0, EACH])

    # A rollback: the older release continues the waits that this release began.
    beside.kill()
    restart(airflow, airflow.triggerer, ROOM_FOR_ALL)
    old = newest_triggerer(airflow)
    wait_until(lambda: triggerers(waiting(runs)) == {old}, "the older triggerer to run all waits", 120)
    end(outside, runs, [1, EACH + 1])

    # The end of the upgrade: this release continues the waits that the older release continued.
    airflow.triggerer.kill()
    airflow.start_component(airflow.triggerer, {**NEW, **ROOM_FOR_ALL})
    new = newest_triggerer(airflow)
    wait_until(lambda: triggerers(waiting(runs)) == {new}, "the upgraded triggerer to run all waits", 120)
    end(outside, runs, [*range(2, EACH), *range(EACH + 2, 2 * EACH)])

    assert [request.path for request in outside.requests()] == ["/job"] * len(runs)
    for run in runs:
        assert [attempt.number for attempt in run.task("job").tries()] == [1]
        assert run.worker_processes() == 0


def restart(airflow: RealAirflow, component: Component, settings: dict[str, str] | None = None) -> None:
    component.kill()
    airflow.start_component(component, settings)


def launch(airflow: RealAirflow, service: OutsideService, numbers: range) -> list[Run]:
    """Trigger a run for each number, and return the runs once each launch is recorded."""
    runs = [airflow.trigger("mixed", {"service": service.url, "number": number}) for number in numbers]
    service.wait_for_requests("/job", numbers.stop, timeout=300)
    for task in [run.task("job") for run in runs]:
        wait_until(
            lambda task=task: "Launched" in task.log(), f"the launch of {task}", timeout=120, every=0.5
        )
    return runs


def end(service: OutsideService, runs: list[Run], numbers: list[int]) -> None:
    """Call back for these runs, and wait until each ended with what it was sent."""
    requests = {int(request.body["number"]): request for request in service.requests("/job")}
    for number in numbers:
        assert service.call_back(requests[number], {"of": number}).status_code == 200
    for number in numbers:
        runs[number].wait_for("success")
        assert runs[number].task("job").xcom() == {"of": number}


def waiting(runs: list[Run]) -> list[Run]:
    return [run for run in runs if run.state == "running"]


def triggerers(runs: list[Run]) -> set[int | None]:
    """Return the ids of the triggerers that these runs are assigned to."""
    return {run.task("job").attributes["trigger"]["triggerer_id"] for run in runs}


def newest_triggerer(airflow: RealAirflow) -> int:
    jobs = airflow.client.get("/jobs", job_type="TriggererJob", limit=10_000)["jobs"]
    return max(job["id"] for job in jobs)


def schema_version(airflow: RealAirflow) -> str:
    engine = create_engine(make_url(airflow.inbox_url).set(drivername="postgresql+psycopg2"))
    with engine.connect() as connection:
        version: str = connection.execute(
            text(f"SELECT version_num FROM {alembic_version.name}")
        ).scalar_one()
    engine.dispose()
    return version
