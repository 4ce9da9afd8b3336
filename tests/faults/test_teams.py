"""Airflow's multi-team mode: two teams, each with its own triggerer, inbox, endpoint and connections."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.support.processes import ServedEndpoint
from sqlalchemy import NullPool, create_engine, text

from real_airflow import Component, OutsideService, Postgres, RealAirflow, Run, postgres_database, wait_until

DAGS = Path(__file__).parent / "dags" / "teams.py"
TEAMS = ("team_a", "team_b")

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@dataclass
class Team:
    """A team, and its service, whose address is in the team's connection `jobs`."""

    name: str
    inbox_url: str
    service: OutsideService
    endpoint: ServedEndpoint
    triggerer: Component

    def count_waits(self) -> int:
        """Return the number of waits in the team's inbox."""
        url = self.inbox_url.replace("asyncpg", "psycopg2")
        with create_engine(url, poolclass=NullPool).connect() as connection:
            return int(connection.execute(text("SELECT count(*) FROM deferrable_ops_waits")).scalar_one())


@pytest.fixture
def airflow(postgres: Postgres, tmp_path: Path) -> Iterator[RealAirflow]:
    """An Airflow with two teams. Its own triggerer belongs to no team."""
    folders = [tmp_path / team for team in TEAMS]
    for folder in folders:
        folder.mkdir()
        shutil.copy(DAGS, folder)
    bundles = [
        {
            "name": folder.name,
            "team_name": folder.name,
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": str(folder), "refresh_interval": 5},
        }
        for folder in folders
    ]
    multi_team = {
        "AIRFLOW__CORE__MULTI_TEAM": "True",
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
    }
    (tmp_path / "home").mkdir()
    airflow = RealAirflow(tmp_path / "home", postgres_database(postgres), folders, multi_team)
    airflow.run_command("db", "migrate")
    for team in TEAMS:
        airflow.run_command("teams", "create", team)
    try:
        airflow.start(api_server_first=True)
        yield airflow
    finally:
        airflow.stop()


@pytest.fixture
def teams(
    airflow: RealAirflow, postgres: Postgres, new_service: Callable[[], OutsideService], tmp_path: Path
) -> Iterator[dict[str, Team]]:
    """Both teams, with their triggerers and endpoints."""
    made: dict[str, Team] = {}
    for name in TEAMS:
        inbox_url = postgres.create_database(name, driver="asyncpg")
        endpoint = ServedEndpoint(tmp_path, inbox_url).start()
        service = new_service().start()
        settings = f"AIRFLOW__{name.upper()}___DEFERRABLE_OPS"
        triggerer = airflow.add_triggerer(
            {
                f"{settings}__INBOX_URL": inbox_url,
                f"{settings}__ENDPOINT_URL": endpoint.url,
                f"AIRFLOW_CONN__{name.upper()}___JOBS": f"{service.url}/http",
                "AIRFLOW_CONN_JOBS": "http://127.0.0.1:9/http",
            },
            "--team-name",
            name,
        )
        made[name] = Team(name, inbox_url, service, endpoint.wait_until_ready(), triggerer)
    yield made
    for team in made.values():
        team.endpoint.kill()


def test_each_team_uses_its_own_triggerer_inbox_endpoint_and_connection(
    airflow: RealAirflow, teams: dict[str, Team]
) -> None:
    runs = {name: airflow.trigger(f"{name}_by_connection") for name in TEAMS}
    for name, team in teams.items():
        [request] = team.service.wait_for_requests("/job", timeout=120)
        assert request.callback_url is not None
        assert request.callback_url.startswith(f"{team.endpoint.url}/callbacks/")
        assert team.count_waits() == 1
        assert team.service.call_back(request, {"of": name}).status_code == 200
    for name, run in runs.items():
        run.wait_for("success")
        assert run.task("job").xcom() == {"of": name}
        assert run.worker_processes() == 0


def test_work_is_cancelled_by_the_team_and_with_the_connection_that_launched_it(
    airflow: RealAirflow, teams: dict[str, Team]
) -> None:
    run = airflow.trigger("team_a_by_connection")
    teams["team_a"].service.wait_for_requests("/job", timeout=120)
    task = run.task("job")
    wait_until(lambda: "Launched the work: " in task.log(), f"the launch of {task}")
    task.mark("failed")
    [cancel] = teams["team_a"].service.wait_for_requests("/cancel", timeout=120)
    assert cancel.method == "DELETE"
    assert teams["team_b"].service.requests() == []


def test_connection_of_a_team_in_the_database_is_one_clear_error_before_the_launch(
    airflow: RealAirflow, teams: dict[str, Team]
) -> None:
    service = teams["team_a"].service
    connection = {
        "connection_id": "stored_team_a",
        "conn_type": "http",
        "host": "127.0.0.1",
        "schema": "http",
        "port": service.port,
        "team_name": "team_a",
    }
    airflow.client.post("/connections", connection)
    run: Run = airflow.trigger("team_a_by_stored_connection")
    run.wait_for("failed")
    log = run.task("job").log()
    assert "there is no connection 'stored_team_a' that a triggerer of the team team_a can read" in log
    assert "AIRFLOW_CONN__TEAM_A___STORED_TEAM_A" in log
    assert service.requests() == []
