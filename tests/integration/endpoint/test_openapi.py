"""Schemathesis on the endpoint's OpenAPI: no request gets a 5xx or an undescribed response."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from uuid import uuid4

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from deferrable_ops.endpoint import create_app
from deferrable_ops.inbox import Attempt, Inbox, NewWait
from real_airflow import wait_until
from real_airflow.ports import free_port

WAITS = 200
FUZZING = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck), database=None)
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    status_code_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Iterator[str]]]:
    """A running endpoint, and tokens of its waits; each is yielded again after its wait is settled."""
    path = tmp_path_factory.mktemp("endpoint") / "inbox.db"
    tokens = asyncio.run(_register(f"sqlite+aiosqlite:///{path}"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", f"sqlite:///{path}")
        port = free_port()
        server = uvicorn.Server(uvicorn.Config(create_app(), port=port, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        wait_until(lambda: server.started, "the endpoint to start")
        yield f"http://127.0.0.1:{port}", itertools.cycle(tokens)
        server.should_exit = True
        thread.join()


schema = schemathesis.openapi.from_dict(create_app().openapi())


@schema.parametrize()
@settings(FUZZING)
def test_no_response_without_a_token_is_a_5xx_or_undescribed(
    case: schemathesis.Case, endpoint: tuple[str, Iterator[str]]
) -> None:
    case.call_and_validate(base_url=endpoint[0], checks=CHECKS)


@schema.parametrize()
@settings(FUZZING)
def test_no_response_with_a_token_is_a_5xx_or_undescribed(
    case: schemathesis.Case, endpoint: tuple[str, Iterator[str]]
) -> None:
    url, tokens = endpoint
    _let_in(case, next(tokens))
    case.call_and_validate(base_url=url, checks=CHECKS)


def _let_in(case: schemathesis.Case, token: str) -> None:
    """Add a valid token to the request, so that more than the signature is tested."""
    if "name" in case.path_parameters:
        case.path_parameters["name"] = "open"
    elif "token" in case.path_parameters:
        case.path_parameters["token"] = token
    else:
        case.headers["Authorization"] = f"Bearer {token}"


async def _register(url: str) -> list[str]:
    inbox = await Inbox.open(url, retry_timeout=5)
    await inbox.channels.add("open", "none", None)
    waits = await asyncio.gather(
        *(
            inbox.waits.register(NewWait(Attempt(str(uuid4()), 1, "d", uuid4().hex, "t"), "webhook", 3600.0))
            for _ in range(WAITS)
        )
    )
    tokens = [await inbox.keys.token(wait.id, wait.key_id) for wait in waits]
    await inbox.close()
    return tokens
