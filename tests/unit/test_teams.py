"""Airflow's multi-team mode: each team has its own settings, connections and inbox."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import google.auth
import pytest
from airflow.sdk import DAG, BaseHook, Connection
from airflow.sdk.execution_time import supervisor
from unit.triggers.support import Runs, new_attempt

from deferrable_ops import settings
from deferrable_ops.exceptions import AirflowUnavailable, ConfigurationError, UnknownWait
from deferrable_ops.inbox import Inbox, NewWait, use_inbox
from deferrable_ops.inbox.large_values import fetch
from deferrable_ops.operators.webhook import WebhookOperator
from deferrable_ops.outcome import Failure, Success
from deferrable_ops.plugin import _for_each_inbox
from deferrable_ops.testing import memory_inbox, outside_service
from deferrable_ops.triggers.lifecycle import cancellation
from deferrable_ops.triggers.lifecycle.stored_trigger import encrypt
from deferrable_ops.triggers.webhook import WebhookTrigger
from deferrable_ops.upstreams.connection_extra import UnknownConnection, read_connection
from deferrable_ops.upstreams.dataflow import credentials
from deferrable_ops.upstreams.sqs.queues import load_settings


class Teams:
    """Lets this process belong to a team, as a triggerer with ``--team-name``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")

    def enter(self, team: str | None) -> None:
        options = [] if team is None else ["--team-name", team]
        self._monkeypatch.setattr(sys, "argv", ["airflow", "triggerer", "--capacity", "7", *options])

    def set(self, team: str, name: str, value: str) -> None:
        self._monkeypatch.setenv(f"AIRFLOW__{team.upper()}___DEFERRABLE_OPS__{name.upper()}", value)


@pytest.fixture(autouse=True)
def teams(monkeypatch: pytest.MonkeyPatch) -> Teams:
    return Teams(monkeypatch)


@pytest.mark.parametrize(
    "argv, team",
    [
        (["airflow", "triggerer", "--team-name", "team_a"], "team_a"),
        (["airflow", "triggerer", "--team-name=team_a", "--queues", "x"], "team_a"),
        (["airflow", "triggerer"], None),
        (["airflow", "pools", "set", "--team-name", "team_a"], None),
    ],
)
def test_triggerer_belongs_to_the_team_of_its_command(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], team: str | None
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert settings.team() == team
    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "False")
    assert settings.team() is None


def test_worker_belongs_to_the_team_of_its_task_and_a_command_to_the_team_of_its_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW_CTX_TEAM_NAME", "team_a")
    assert settings.team() == "team_a"
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__TEAM", "team_b")
    assert settings.team() == "team_b"


def test_team_has_its_own_settings_and_shares_the_others(
    monkeypatch: pytest.MonkeyPatch, teams: Teams
) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", "postgresql://host/shared")
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__MAX_XCOM_BYTES", "100")
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__NOTIFY", "False")
    teams.set("team_a", "inbox_url", "postgresql://host/a")
    teams.set("team_a", "notify", "True")
    teams.enter("team_a")
    assert settings.inbox_url() == "postgresql+asyncpg://host/a"
    assert (settings.max_xcom_bytes(), settings.notify()) == (100, True)
    teams.enter("team_b")
    assert settings.inbox_url() == "postgresql+asyncpg://host/shared"
    assert not settings.notify()
    assert settings.inbox_url("TEAM_A") == "postgresql+asyncpg://host/a"
    assert settings.teams_with_inbox() == {"TEAM_A"}


def test_team_with_an_inbox_needs_an_endpoint_that_uses_it(
    monkeypatch: pytest.MonkeyPatch, teams: Teams
) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__ENDPOINT_URL", "https://airflow.example.com/deferrable-ops")
    teams.set("team_a", "inbox_url", "postgresql://host/a")
    teams.enter("team_a")
    with pytest.raises(ConfigurationError, match="AIRFLOW__TEAM_A___DEFERRABLE_OPS__ENDPOINT_URL"):
        settings.endpoint_url()
    teams.set("team_a", "endpoint_url", "https://a.example.com")
    assert settings.endpoint_url() == "https://a.example.com"
    teams.enter("team_b")
    assert settings.endpoint_url() == "https://airflow.example.com/deferrable-ops"


async def test_triggerer_of_a_team_never_uses_a_connection_without_a_team(
    monkeypatch: pytest.MonkeyPatch, teams: Teams
) -> None:
    async def global_one(_conn_id: str) -> Any:
        return Connection(conn_id="jobs", conn_type="http", host="global.example.com")

    monkeypatch.setenv("AIRFLOW_CONN__TEAM_A___JOBS", "http://a.example.com")
    for set_global in (
        lambda: monkeypatch.setattr(BaseHook, "aget_connection", global_one),
        lambda: monkeypatch.setenv("AIRFLOW_CONN_JOBS", "http://global.example.com"),
    ):
        set_global()
        teams.enter("team_a")
        assert (await read_connection("jobs"))[0].host == "a.example.com"
        teams.enter("team_b")
        with pytest.raises(UnknownConnection, match="Define AIRFLOW_CONN__TEAM_B___JOBS"):
            await read_connection("jobs")
        teams.enter(None)
        assert (await read_connection("jobs"))[0].host == "global.example.com"


async def test_worker_uses_the_connection_that_airflow_returns_for_its_team(
    monkeypatch: pytest.MonkeyPatch, teams: Teams
) -> None:
    async def of_team(_conn_id: str) -> Any:
        return Connection(conn_id="jobs", conn_type="http", host="b.example.com")

    monkeypatch.setattr(BaseHook, "aget_connection", of_team)
    monkeypatch.setenv("AIRFLOW_CTX_TEAM_NAME", "team_b")
    assert (await read_connection("jobs"))[0].host == "b.example.com"


async def test_work_is_not_launched_with_a_connection_without_a_team(
    monkeypatch: pytest.MonkeyPatch, teams: Teams
) -> None:
    async with memory_inbox() as inbox, outside_service() as service:
        monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__ENDPOINT_URL", "https://airflow.example.com")
        monkeypatch.setenv("AIRFLOW_CONN_JOBS", f"{service.url}/http")
        teams.enter("team_b")
        runs = Runs(inbox)
        outcome = await runs.start(WebhookTrigger(http_conn_id="jobs", path="start")).outcome()
        await runs.stop()
        assert isinstance(outcome, Failure)
        assert "AIRFLOW_CONN__TEAM_B___JOBS" in outcome.reason
        assert not outcome.retryable
        assert service.requests == []


def test_default_google_connection_of_a_team_is_not_replaced_by_the_credentials_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, teams: Teams
) -> None:
    def missing(*_: Any) -> None:
        raise UnknownConnection("there is no connection 'google_cloud_default'")

    monkeypatch.setattr(credentials, "_connection_credentials", missing)
    monkeypatch.setattr(google.auth, "default", lambda scopes: ("the machine's", "project"))
    assert credentials._default_credentials(()).project_id == "project"
    teams.enter("team_a")
    with pytest.raises(UnknownConnection, match="define this connection as google-cloud-platform://"):
        credentials._default_credentials(())


@pytest.mark.parametrize("template", ["{{ conn.jobs.password }}", "{{ var.value.region }}"])
def test_template_with_a_connection_or_a_variable_is_rendered_on_a_worker(
    monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    with DAG("dag", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):
        task = WebhookOperator(task_id="job", url="https://jobs.example.com", json={"x": template})
    assert "which a triggerer does not have" in str(task.worker_start_reason)
    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "False")
    assert task.worker_start_reason is None


async def test_error_of_a_connection_that_a_triggerer_cannot_read_names_the_limit(teams: Teams) -> None:
    teams.enter("team_a")
    with pytest.raises(UnknownConnection, match="Define AIRFLOW_CONN__TEAM_A___MISSING") as caught:
        await read_connection("missing")
    assert "the connections of a team that are stored in the metadata database" in str(caught.value)
    with pytest.raises(UnknownConnection, match="aws_conn_id=None"):
        await load_settings("aws_default")


async def test_api_server_works_on_the_inbox_of_each_team(
    monkeypatch: pytest.MonkeyPatch, teams: Teams, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["airflow", "api-server"])
    for team in ("team_a", "team_b"):
        teams.set(team, "inbox_url", f"sqlite:///{tmp_path / team}.db")
    found = []

    async def work(inbox: Inbox) -> None:
        found.append(Path(inbox.database.url.database or "").name)

    async with memory_inbox() as shared:
        await _for_each_inbox(shared, work)
    assert sorted(found) == ["", "team_a.db", "team_b.db"]


class Backend:
    """A secrets backend that supports teams."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def get_connection(self, conn_id: str, team_name: str | None = None) -> Any:
        from airflow.sdk import Connection

        if self._error is not None:
            raise self._error
        return Connection(conn_id=conn_id, conn_type="http", host=f"{team_name}.example.com")

    def get_conn_value(self, conn_id: str, team_name: str | None = None) -> None: ...


async def test_secrets_backend_is_asked_for_the_team(monkeypatch: pytest.MonkeyPatch, teams: Teams) -> None:
    teams.enter("team_a")
    monkeypatch.setattr(supervisor, "ensure_secrets_backend_loaded", lambda: [Backend()])
    assert (await read_connection("jobs"))[0].host == "team_a.example.com"
    monkeypatch.setenv("AIRFLOW_CONN_JOBS", "http://global.example.com")
    monkeypatch.setattr(supervisor, "ensure_secrets_backend_loaded", lambda: [Backend(OSError())])
    with pytest.raises(AirflowUnavailable, match="of the team team_a from Backend: OSError"):
        await read_connection("jobs")


async def test_work_is_cancelled_only_by_the_team_that_launched_it(
    monkeypatch: pytest.MonkeyPatch, teams: Teams
) -> None:
    cancelled = []

    async def cancel(trigger: WebhookTrigger, wait: Any) -> None:
        cancelled.append(wait.id)

    monkeypatch.setattr(WebhookTrigger, "cancel", cancel)
    async with memory_inbox() as inbox:
        attempt = new_attempt()
        teams.enter("team_a")
        trigger = WebhookTrigger(cancel_request={"url": "https://x"}, attempt=asdict(attempt))
        new = NewWait(attempt, "webhook", 60.0, trigger=encrypt(trigger, attempt))
        wait = await inbox.waits.register(new)
        await inbox.waits.kill([wait.id])
        for team in ("team_b", None):
            teams.enter(team)
            await cancellation.cancel_due_work(inbox)
        assert not cancelled
        teams.enter("team_a")
        await cancellation.cancel_due_work(inbox)
        assert cancelled == [wait.id]
        assert (await inbox.waits.get(wait.id)).cancel == "done"


def test_task_cannot_read_a_value_of_another_team(
    monkeypatch: pytest.MonkeyPatch, teams: Teams, tmp_path: Path
) -> None:
    for team in ("team_a", "team_b"):
        teams.set(team, "inbox_url", f"sqlite:///{tmp_path / team}.db")
    attempt = new_attempt()
    reference = {"deferrable_ops_value_of_wait": attempt.wait_id, "bytes": 7}

    async def store() -> None:
        async with use_inbox(retry_timeout=5) as inbox:
            wait = await inbox.waits.register(NewWait(attempt, "webhook", 60.0))
            await inbox.waits.settle(wait.id, Success({"secret": 1}))

    teams.enter("team_a")
    asyncio.run(store())
    assert fetch(reference) == {"secret": 1}
    teams.enter("team_b")
    with pytest.raises(UnknownWait):
        fetch(reference)
