"""The project, the endpoint and the warnings with which the Dataflow API is opened."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.api_core import grpc_helpers_async
from google.auth.credentials import AnonymousCredentials

from deferrable_ops.exceptions import ConfigurationError
from deferrable_ops.upstreams.dataflow import api
from deferrable_ops.upstreams.dataflow.api import open_api
from deferrable_ops.upstreams.dataflow.credentials import LoadedCredentials
from deferrable_ops.upstreams.dataflow.jobs import DataflowTarget

EMULATOR = "127.0.0.1:1"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The endpoints to which channels were opened."""
    endpoints: list[str] = []
    create_channel = grpc_helpers_async.create_channel

    def recorded(target: str, **arguments: Any) -> Any:
        endpoints.append(target)
        return create_channel(target, **arguments)

    monkeypatch.setattr(grpc_helpers_async, "create_channel", recorded)
    return endpoints


def load(monkeypatch: pytest.MonkeyPatch, universe: str, project_id: str | None) -> None:
    loaded = LoadedCredentials(AnonymousCredentials(), project_id, universe)
    monkeypatch.setattr(api, "load_credentials", lambda *_: loaded)


@pytest.mark.parametrize(
    "universe, setting, endpoint",
    [
        ("googleapis.com", "", "dataflow.googleapis.com:443"),
        ("example.cloud", "", "dataflow.example.cloud:443"),
        (
            "googleapis.com",
            "dataflow.us-east4.rep.googleapis.com",
            "dataflow.us-east4.rep.googleapis.com:443",
        ),
        ("googleapis.com", "10.0.0.8:8443", "10.0.0.8:8443"),
    ],
)
async def test_endpoint_is_that_of_the_setting_or_of_the_universe(
    monkeypatch: pytest.MonkeyPatch, opened: list[str], universe: str, setting: str, endpoint: str
) -> None:
    load(monkeypatch, universe, "p")
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__DATAFLOW_API_ENDPOINT", setting)
    await (await open_api(DataflowTarget("p", "europe-west1"), None)).close()
    assert opened == [endpoint]


async def test_project_is_that_of_the_task_or_of_the_credentials(
    monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    load(monkeypatch, "googleapis.com", "of-the-credentials")
    for project_id, used in (("", "of-the-credentials"), ("of-the-task", "of-the-task")):
        found = await open_api(DataflowTarget(project_id, "europe-west1"), None)
        assert found.project_id == used
        await found.close()
    load(monkeypatch, "googleapis.com", None)
    with pytest.raises(ConfigurationError, match="has no default project; set project_id="):
        await open_api(DataflowTarget("", "europe-west1"), None)


async def test_region_and_connection_that_only_an_emulator_accepts_are_warned_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    target = DataflowTarget("", "europe-west1-b", "missing")
    await (await open_api(target, EMULATOR)).close()
    assert "region='europe-west1-b' is not a region of Google Cloud" in caplog.text
    assert "gcp_conn_id='missing' would fail without the emulator: there is no connection" in caplog.text
    caplog.clear()
    extra = json.dumps({"project": "of-the-connection"})
    monkeypatch.setenv("AIRFLOW_CONN_GCP", json.dumps({"conn_type": "google_cloud_platform", "extra": extra}))
    found = await open_api(DataflowTarget("", "europe-west1", "gcp"), EMULATOR)
    assert found.project_id == "of-the-connection"
    await found.close()
    assert not caplog.text
