"""The standalone endpoint's log: one line per request, as text or JSON."""

from __future__ import annotations

import json
import logging.config
import re
import sys

import httpx
import pytest
from fastapi import FastAPI
from unit.endpoint.support import Caller

from deferrable_ops.endpoint.logs import AccessLog, JsonFormatter, TextFormatter, access_log, log_config


@pytest.fixture
async def logged(app: FastAPI, caplog: pytest.LogCaptureFixture) -> httpx.AsyncClient:
    caplog.set_level(logging.INFO, access_log.name)
    transport = httpx.ASGITransport(AccessLog(app), client=("10.0.0.7", 4711))
    return httpx.AsyncClient(transport=transport, base_url="http://endpoint")


def last_line(caplog: pytest.LogCaptureFixture, formatter: logging.Formatter) -> str:
    return formatter.format(caplog.records[-1])


async def test_line_of_a_request_has_time_client_wait_and_no_token(
    caller: Caller, logged: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    await logged.post(f"/callbacks/{caller.token}/success?x=1", json={})
    line = last_line(caplog, TextFormatter())
    path = f"/callbacks/{caller.wait.id}.masked/success"
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO 10\.0\.0\.7:4711 - "
        rf'"POST {path}\?x=1 HTTP/1\.1" 200 wait={caller.wait.id} \d\.\d{{4}} s',
        line,
    )
    signature = caller.token.rpartition(".")[2]
    assert signature not in line
    assert signature not in last_line(caplog, JsonFormatter())


async def test_wait_is_logged_if_the_token_is_in_a_header(
    caller: Caller, logged: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    bearer = {"Authorization": f"Bearer {caller.token}"}
    await logged.post("/callbacks/heartbeat", json={}, headers=bearer)
    line = json.loads(last_line(caplog, JsonFormatter()))
    assert line["time"].endswith("Z")
    fields = ("level", "client", "method", "path", "status", "wait")
    assert [line[name] for name in fields] == [
        "INFO",
        "10.0.0.7:4711",
        "POST",
        "/callbacks/heartbeat",
        200,
        caller.wait.id,
    ]


async def test_wait_of_a_forged_token_and_line_breaks_of_a_path_are_not_logged(
    caller: Caller, logged: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    await logged.get(f"/callbacks/{caller.wait.id}.{caller.wait.key_id}.{'A' * 43}")
    assert "401 wait=- " in last_line(caplog, TextFormatter())
    await logged.get("/no%0Asuch/path")
    assert "\n" not in last_line(caplog, TextFormatter())
    assert "/no%0Asuch/path" in last_line(caplog, TextFormatter())


def test_json_line_holds_the_traceback() -> None:
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        record = logging.LogRecord("deferrable_ops.x", logging.ERROR, "", 0, "a %s", ("b",), sys.exc_info())
    line = json.loads(JsonFormatter().format(record))
    assert (line["message"], line["logger"]) == ("a b", "deferrable_ops.x")
    assert "RuntimeError: broken" in line["exception"]


@pytest.mark.parametrize("as_json", [False, True])
def test_log_configuration_is_valid(as_json: bool) -> None:
    logging.config.DictConfigurator(log_config(as_json=as_json)).configure_formatter(
        log_config(as_json=as_json)["formatters"]["line"]
    )
