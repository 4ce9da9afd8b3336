"""The settings that every test of the guide needs."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def endpoint_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the public address of the endpoint. Nothing listens there: these tests call back without HTTP."""
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__ENDPOINT_URL", "https://airflow.example.com/deferrable-ops")
