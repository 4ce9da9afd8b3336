"""The endpoint in the test's process, with its own inbox."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from unit.endpoint.support import Caller

from deferrable_ops.endpoint import create_app
from deferrable_ops.inbox import Inbox, use_inbox


@pytest.fixture
def inbox_url(inbox_file: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The setting inbox_url: a SQLite file."""
    url = f"sqlite:///{inbox_file}"
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", url)
    return url


@pytest.fixture
async def inbox(inbox_url: str) -> AsyncIterator[Inbox]:
    """The inbox that the endpoint uses too."""
    async with use_inbox(retry_timeout=2) as opened:
        yield opened


@pytest.fixture
def app(inbox_url: str) -> FastAPI:
    """An endpoint without a running lifespan, which requests do not need."""
    return create_app()


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the endpoint."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
        yield client


@pytest.fixture
async def caller(inbox: Inbox, http: httpx.AsyncClient) -> Caller:
    """An outside service that has the token of a wait."""
    return await Caller.of_new_wait(inbox, http)
