"""Airflow's connections are read with a timeout, and errors name the connection and the fix."""

from __future__ import annotations

import asyncio
import json

import pytest
from airflow.models.connection import Connection
from airflow.sdk import BaseHook

from deferrable_ops.exceptions import AirflowUnavailable, ConfigurationError
from deferrable_ops.upstreams.connection_extra import UnknownConnection, read_connection


def connect(monkeypatch: pytest.MonkeyPatch, extra: str) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_JOBS", json.dumps({"conn_type": "http", "host": "jobs.example.com", "extra": extra})
    )


async def test_connection_comes_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, '{"a": [1]}')
    connection, extra = await read_connection("jobs")
    assert (connection.host, extra) == ("jobs.example.com", {"a": [1]})


async def test_api_servers_connection_comes_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    async def model(conn_id: str) -> Connection:
        return Connection(conn_id=conn_id, conn_type="http", extra='{"a": [1]}')

    monkeypatch.setattr(BaseHook, "aget_connection", model)
    assert (await read_connection("jobs"))[1] == {"a": [1]}


@pytest.mark.parametrize("extra", ["", "{}", " { } ", "null"])
async def test_extra_may_be_empty(monkeypatch: pytest.MonkeyPatch, extra: str) -> None:
    connect(monkeypatch, extra)
    assert not (await read_connection("jobs"))[1]


async def test_extra_that_is_not_json_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "password=hush")
    with pytest.raises(ConfigurationError, match="extra of the connection 'jobs' is not JSON") as refused:
        await read_connection("jobs")
    assert "hush" not in str(refused.value)


async def test_missing_connection_has_its_own_exception() -> None:
    with pytest.raises(UnknownConnection, match="there is no connection 'missing'"):
        await read_connection("missing")


async def test_reading_a_connection_has_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_conn_id: str) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(BaseHook, "aget_connection", never)
    with pytest.raises(AirflowUnavailable, match="did not return the connection"):
        await read_connection("jobs", timeout=0.05)
