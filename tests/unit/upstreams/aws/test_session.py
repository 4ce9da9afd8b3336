"""The clients of AWS are created by aioboto3 where it is installed."""

from __future__ import annotations

import sys
from contextlib import AbstractAsyncContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from deferrable_ops.upstreams.aws.connection import AwsSettings
from deferrable_ops.upstreams.aws.session import AwsSession

SETTINGS = AwsSettings(access_key="key", secret_key="secret", region="eu-west-1")


class FakeAioboto3:
    """The part of aioboto3's Session that the library uses."""

    created: list[tuple[str, dict[str, Any]]]

    def __init__(self, botocore_session: Any) -> None:
        # The real class does this, too.
        botocore_session.get_component("data_loader").search_paths.append("/aioboto3")

    def client(self, service: str, **arguments: Any) -> AbstractAsyncContextManager[str]:
        self.created.append((service, arguments))
        return nullcontext("client of aioboto3")


async def test_installed_aioboto3_creates_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeAioboto3.created = []
    monkeypatch.setitem(sys.modules, "aioboto3", SimpleNamespace(Session=FakeAioboto3))
    session = AwsSession(SETTINGS)
    assert await session.client("sqs", None, "http://127.0.0.1:1") == "client of aioboto3"
    [(service, arguments)] = FakeAioboto3.created
    assert (service, arguments["region_name"]) == ("sqs", "eu-west-1")
    assert arguments["endpoint_url"] == "http://127.0.0.1:1"
    assert "/aioboto3" not in session._session.get_component("data_loader").search_paths
    await session.close()


async def test_without_aioboto3_aiobotocore_creates_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aioboto3", None)
    session = AwsSession(SETTINGS)
    client = await session.client("sqs", None, "http://127.0.0.1:1")
    assert client.meta.region_name == "eu-west-1"
    await session.close()
