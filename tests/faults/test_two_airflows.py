"""Two Airflows on one inbox: the second is a copy of the first, as in a staging system or blue/green.

Each runs on hosts of its own, and the databases and the service on another.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from real_airflow import (
    Database,
    Hosts,
    OutsideService,
    Postgres,
    RealAirflow,
    Run,
    Task,
    postgres_database,
    wait_until,
)

# A copied Airflow uses the original's key, too.
KEY = {"AIRFLOW__CORE__FERNET_KEY": Fernet.generate_key().decode()}
DAGS = Path(__file__).parents[1] / "airflow" / "dags"

WAITS = 4
SWEEP = 60

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture
def new_airflow(hosts: Hosts, tmp_path: Path) -> Iterator[Callable[[str, Database], RealAirflow]]:
    """Make Airflows, which are not started yet."""
    made: list[RealAirflow] = []
    dags = tmp_path / "dags"
    dags.mkdir()
    shutil.copy(DAGS / "webhook.py", dags)

    def make(name: str, database: Database) -> RealAirflow:
        (tmp_path / name).mkdir()
        made.append(RealAirflow(tmp_path / name, database, [dags], KEY, hosts))
        return made[-1]

    yield make
    for airflow in made:
        airflow.stop()


def wait_for_line(task: Task, line: str) -> None:
    wait_until(lambda: line in task.log(), f"{line!r} in the log of {task}", timeout=180)


def owner_in(airflow: RealAirflow) -> str:
    """Return the id that the API server of an Airflow has stored."""
    stored = airflow.client.get("/variables/deferrable_ops_deployment")["value"]
    return str(json.loads(stored)["id"])


def test_copy_of_an_airflow_disturbs_nothing_until_it_adopts_the_inbox(
    new_postgres: Callable[[dict[str, str]], Postgres],
    new_airflow: Callable[[str, Database], RealAirflow],
    new_service: Callable[[], OutsideService],
) -> None:
    postgres, outside = new_postgres({"fsync": "off"}), new_service().start()
    database = postgres_database(postgres)
    first = new_airflow("first", database)
    first.start(api_server_first=True)
    runs = [first.trigger("webhook_cancel", {"service": outside.url}) for _ in range(WAITS)]
    requests = {
        request.idempotency_key: request for request in outside.wait_for_requests("/job", WAITS, timeout=120)
    }
    for run in runs:
        wait_for_line(run.task("job"), "Launched the work: ")

    copied = postgres.copy_database(database.metadata_url, "green")
    second = new_airflow("second", Database("postgres", copied, database.inbox_url))
    second.start(api_server_first=True)
    output = second.api_server.output
    wait_until(lambda: "THE METADATA DATABASE IS A COPY" in output.read_text(), "the copy to be noticed")
    wait_until(
        lambda: "This API server does not end waits" in output.read_text(), "the copy to sweep nothing"
    )
    assert owner_in(second) != owner_in(first)

    # The same tasks are ended and cleared in the copy. The first Airflow's work is not touched by it.
    here = [Run(second.client, run.dag_id, run.run_id).task("job") for run in runs]
    here[0].mark("failed")
    here[1].clear()
    wait_for_line(here[1], "deferrable-ops inbox adopt")
    # Long enough for each API server to sweep.
    until = time.monotonic() + 1.5 * SWEEP
    wait_until(lambda: time.monotonic() > until, "each API server to sweep", timeout=3 * SWEEP)
    assert [request.path for request in outside.requests()] == ["/job"] * WAITS
    for request in requests.values():
        assert outside.call_back(request, {"of": "first"}).status_code == 200
    for run in runs:
        run.wait_for("success")
        assert run.task("job").xcom() == {"of": "first"}

    printed = second.run_own_command("inbox", "adopt")
    assert owner_in(second) in printed
    assert owner_in(first) in printed
    [*_, new] = outside.wait_for_requests("/job", WAITS + 1, timeout=120)
    assert new.idempotency_key not in requests
    assert outside.call_back(new, {"of": "second"}).status_code == 200
    here[1].run.wait_for("success")
    later = first.trigger("webhook_cancel", {"service": outside.url})
    wait_for_line(later.task("job"), "deferrable-ops inbox adopt")
    assert len(outside.requests("/job")) == WAITS + 1
