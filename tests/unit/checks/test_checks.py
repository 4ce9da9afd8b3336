"""The ready-made checks, against real servers on loopback."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from deferrable_ops.checks import FileCheck, HttpCheck, ReadyCheck, TcpCheck
from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability import Action, Result

WELL, ILL = (Result.PASS, Action.CONTINUE), (Result.FAIL, Action.RETRIGGER)


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    """An HTTP service: /status/503 returns status 503, /slow never responds."""

    async def status(request: web.Request) -> web.Response:
        text = f"{request.method} {request.headers.get('X-Key', '')} ready"
        return web.Response(status=int(request.match_info["status"]), text=text)

    async def slow(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    app = web.Application()
    app.router.add_route("*", "/status/{status}", status)
    app.router.add_get("/slow", slow)
    async with TestServer(app) as server:
        yield server


@pytest.mark.parametrize(
    "path, arguments, expected",
    [
        ("/status/200", {}, WELL),
        ("/status/299", {}, WELL),
        ("/status/302", {}, ILL),
        ("/status/503", {}, ILL),
        ("/status/503", {"expected_status": 503}, WELL),
        ("/status/200", {"expected_status": [204, 404]}, ILL),
        ("/status/200", {"contains": "GET key ready", "headers": {"X-Key": "key"}}, WELL),
        ("/status/200", {"contains": "broken"}, ILL),
        ("/status/200", {"method": "HEAD"}, WELL),
        ("/slow", {"timeout": 0.2}, ILL),
        ("/status/200", {"on_pass": Action.STOP}, (Result.PASS, Action.STOP)),
        ("/status/500", {"on_fail": "continue"}, (Result.FAIL, Action.CONTINUE)),
    ],
)
async def test_http_check(server: TestServer, path: str, arguments: dict[str, Any], expected: Any) -> None:
    assert await HttpCheck(str(server.make_url(path)), **arguments)() == expected


async def test_failed_http_check_logs_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    check = HttpCheck(
        "http://user:hunter2@127.0.0.1:1/health?key=hunter2", headers={"Authorization": "Bearer hunter2"}
    )
    assert await check() == ILL
    assert "http://127.0.0.1:1/health" in caplog.text
    assert "hunter2" not in caplog.text


def test_headers_are_not_in_the_repr() -> None:
    assert "hunter2" not in repr(HttpCheck("https://x", headers={"Authorization": "hunter2"}))


async def test_tcp_check(server: TestServer) -> None:
    assert server.port is not None
    assert await TcpCheck("127.0.0.1", server.port)() == WELL
    assert await TcpCheck("127.0.0.1", str(server.port))() == WELL
    assert await TcpCheck("127.0.0.1", 1, on_fail=Action.STOP)() == (Result.FAIL, Action.STOP)


async def test_file_check(tmp_path: Path) -> None:
    file = tmp_path / "alive"
    assert await FileCheck(file)() == ILL
    file.touch()
    assert await FileCheck(file)() == WELL
    assert await FileCheck(str(file), max_age=60)() == WELL
    os.utime(file, (0, time.time() - 61))
    assert await FileCheck(file, max_age=60)() == ILL
    assert await FileCheck(tmp_path)() == WELL


@pytest.mark.parametrize("check", [HttpCheck("https://x"), TcpCheck("h", 1), FileCheck("/x", max_age=5)])
def test_check_is_recreated_from_its_path_and_arguments(check: ReadyCheck) -> None:
    import json
    import pkgutil

    again = pkgutil.resolve_name(check.path())(**json.loads(json.dumps(check.arguments())))
    assert again == check


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: HttpCheck("orders.example.com"), "url="),
        (lambda: HttpCheck("ftp://x"), "url="),
        (lambda: HttpCheck(""), "url="),
        (lambda: HttpCheck("https://x", method="BREW"), "method="),
        (lambda: HttpCheck("https://x", headers={"X": 1}), "headers="),
        (lambda: HttpCheck("https://x", expected_status="ok"), "expected_status="),
        (lambda: HttpCheck("https://x", expected_status=[20]), "expected_status="),
        (lambda: HttpCheck("https://x", expected_status=[]), "expected_status="),
        (lambda: HttpCheck("https://x", contains=""), "contains="),
        (lambda: HttpCheck("https://x", timeout=0), "timeout="),
        (lambda: HttpCheck("https://x", on_pass="wait"), "on_pass="),
        (lambda: TcpCheck("", 1), "host="),
        (lambda: TcpCheck("h", 0), "port="),
        (lambda: TcpCheck("h", 65536), "port="),
        (lambda: TcpCheck("h", "http"), "port="),
        (lambda: TcpCheck("h", True), "port="),
        (lambda: TcpCheck("h", 1, timeout=-1), "timeout="),
        (lambda: FileCheck(""), "file="),
        (lambda: FileCheck("x", max_age=0), "max_age="),
    ],
)
def test_invalid_argument_is_named(make: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        make()


def test_templates_are_validated_after_rendering() -> None:
    HttpCheck("{{ conn.orders.host }}/health")
    TcpCheck("{{ conn.orders.host }}", "{{ conn.orders.port }}")
    FileCheck("/data/{{ ds }}")
