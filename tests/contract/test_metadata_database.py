"""What the API server reads and writes in Airflow's metadata database, on SQLite and Postgres."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from airflow import settings
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancehistory import TaskInstanceHistory
from airflow.models.variable import Variable
from sqlalchemy import Engine, create_engine, insert, select
from sqlalchemy.orm import sessionmaker
from sqlalchemy.schema import CreateTable

from deferrable_ops import metadata_database
from deferrable_ops.deployment import VARIABLE
from deferrable_ops.exceptions import ConfigurationError, DeploymentError
from deferrable_ops.inbox.waits.wait import WaitingAttempt
from deferrable_ops.metadata_database import (
    ensure_deployment,
    find_ended,
    find_orphaned,
    find_over,
    read_deployment,
)


@pytest.fixture(params=["sqlite", "postgres"])
def metadata(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    """A metadata database with the four tables that are used, as Airflow's own session sees it."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/airflow.db"
    else:
        url = request.getfixturevalue("postgres").create_database("metadata", driver="psycopg2")
    engine = create_engine(url)
    with engine.begin() as connection:
        for model in (Variable, DagRun, TaskInstance, TaskInstanceHistory):
            connection.execute(CreateTable(model.__table__, include_foreign_key_constraints=[]))
    monkeypatch.setattr(settings, "Session", sessionmaker(bind=engine))
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", url)
    yield engine
    engine.dispose()


def stored(engine: Engine) -> str | None:
    with sessionmaker(bind=engine)() as session:
        variable = session.scalar(select(Variable).where(Variable.key == VARIABLE))
        return None if variable is None else variable.val


def moved_to(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let the same tables be at another address, as after a copy of the database."""
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", url)


def test_id_is_made_once_and_kept(metadata: Engine) -> None:
    first = ensure_deployment()
    assert first == ensure_deployment() == read_deployment()
    written = json.loads(stored(metadata) or "")
    assert written["id"] == first
    assert set(written) == {"id", "made_for"}
    assert "airflow.db" not in written["made_for"]


def test_setting_comes_first_and_nothing_is_written(
    metadata: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__DEPLOYMENT", "production")
    assert ensure_deployment() == read_deployment() == "production"
    assert stored(metadata) is None


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg2://airflow:secret@green/airflow",
        "postgresql+psycopg2://airflow:secret@blue:6432/airflow",
        "postgresql+psycopg2://airflow:secret@blue/green",
    ],
)
def test_copy_at_another_host_port_or_name_gets_an_id_of_its_own_which_is_logged_loudly(
    metadata: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    moved_to(monkeypatch, "postgresql+psycopg2://airflow:secret@blue/airflow")
    original = ensure_deployment()
    moved_to(monkeypatch, url)
    with pytest.raises(ConfigurationError, match="another metadata database"):
        read_deployment()
    copy = ensure_deployment()
    assert copy != original
    assert copy == ensure_deployment()
    [line] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert f"deferrable-ops inbox adopt {copy}" in line.getMessage()
    assert original in line.getMessage()
    assert "secret" not in caplog.text


def test_other_login_or_driver_is_the_same_database(
    metadata: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved_to(monkeypatch, "postgresql+psycopg2://airflow:secret@blue/airflow")
    original = ensure_deployment()
    moved_to(monkeypatch, "postgresql://other:rotated@blue:5432/airflow?sslmode=require")
    assert ensure_deployment() == original


@pytest.mark.parametrize("is_copy", [False, True])
def test_api_servers_that_start_together_agree(
    metadata: Engine, monkeypatch: pytest.MonkeyPatch, is_copy: bool
) -> None:
    if is_copy:
        ensure_deployment()
        moved_to(monkeypatch, "postgresql+psycopg2://airflow:secret@green/airflow")
    both_have_read = threading.Barrier(4)
    read = metadata_database._read
    waits = threading.local()

    def read_together() -> object:
        found = read()
        if not getattr(waits, "over", False):
            waits.over = True
            both_have_read.wait(20)
        return found

    monkeypatch.setattr(metadata_database, "_read", read_together)
    with ThreadPoolExecutor(4) as servers:
        ids = {server.result() for server in [servers.submit(ensure_deployment) for _ in range(4)]}
    assert len(ids) == 1
    assert ids == {json.loads(stored(metadata) or "")["id"]}


def test_variable_that_cannot_be_decrypted_is_not_replaced(
    metadata: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_deployment()
    monkeypatch.setattr(metadata_database, "_replace", lambda *_: pytest.fail("it was replaced"))
    monkeypatch.setattr(Variable, "val", property(lambda self: None))
    with pytest.raises(DeploymentError, match="fernet_key"):
        ensure_deployment()


def add(
    engine: Engine,
    state: str | None,
    try_number: int = 1,
    *,
    archived: bool = False,
    run_id: str | None = None,
) -> str:
    """Add a task instance, or one that was cleared, and return its id."""
    ti_id = uuid4()
    columns = {
        "dag_id": "dag",
        "run_id": run_id or str(ti_id),
        "task_id": "task",
        "map_index": -1,
        "state": state,
        "try_number": try_number,
        "pool": "default_pool",
        "pool_slots": 1,
    }
    model = TaskInstanceHistory if archived else TaskInstance
    with engine.begin() as connection:
        connection.execute(
            insert(model.__table__).values(
                **columns, **({"task_instance_id": ti_id} if archived else {"id": ti_id})
            )
        )
    return str(ti_id)


def attempt(ti_id: str, try_number: int = 1) -> WaitingAttempt:
    return WaitingAttempt(f"wait of {ti_id}", ti_id, try_number)


@pytest.mark.parametrize(
    ("state", "try_number", "is_over"),
    [
        ("deferred", 1, False),
        ("running", 1, False),
        ("queued", 1, False),
        ("scheduled", 1, False),
        (None, 1, False),
        ("up_for_retry", 1, True),
        ("success", 1, True),
        ("failed", 1, True),
        ("skipped", 1, True),
        ("removed", 1, True),
        # A retry can have the same id.
        ("deferred", 2, True),
    ],
)
async def test_attempt_is_over_by_the_state_of_its_own_try(
    metadata: Engine, state: str | None, try_number: int, is_over: bool
) -> None:
    found = attempt(add(metadata, state, try_number))
    assert await find_ended([found]) == ([found] if is_over else [])


async def test_attempt_of_a_cleared_task_is_over(metadata: Engine) -> None:
    cleared = attempt(add(metadata, "failed", archived=True))
    assert await find_ended([cleared]) == [cleared]
    assert find_orphaned([cleared]) == []


async def test_attempt_without_a_task_instance_is_orphaned_and_not_over(metadata: Engine) -> None:
    missing = attempt(str(UUID(int=7)))
    waiting = attempt(add(metadata, "deferred"))
    assert await find_ended([missing, waiting]) == []
    assert find_orphaned([missing, waiting]) == [missing]


def add_run(engine: Engine, dag_id: str, run_id: str, state: str) -> None:
    now = datetime.now(UTC)
    columns = {"run_type": "manual", "log_template_id": 1, "run_after": now, "updated_at": now}
    with engine.begin() as connection:
        connection.execute(
            insert(DagRun.__table__).values(dag_id=dag_id, run_id=run_id, state=state, **columns)
        )


async def test_run_is_over_when_airflow_runs_nothing_of_it_and_no_other_run_of_its_dag(
    metadata: Engine,
) -> None:
    add_run(metadata, "ended", "monday", "failed")
    add_run(metadata, "retriggered", "monday", "failed")
    add_run(metadata, "retriggered", "tuesday", "queued")
    add_run(metadata, "running", "monday", "running")
    # A teardown task still runs, although a user has marked the run as failed.
    add_run(metadata, "dag", "monday", "failed")
    add(metadata, "up_for_retry", run_id="monday")
    asked = [(dag_id, "monday") for dag_id in ("ended", "retriggered", "running", "dag", "deleted")]
    assert await find_over(asked) == [("ended", "monday"), ("deleted", "monday")]
