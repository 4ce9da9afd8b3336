"""Sends commands over HTTP to a fake Dataflow that runs in a separate process."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from deferrable_ops.testing.dataflow.fake import FakeDataflow

_SETTINGS = {"second_launch", "list_lag", "get_lag", "label_lag", "page_limit", "failed_location"}


class DataflowControl:
    """Controls a fake Dataflow in another process.

    :param host: the value for the setting ``dataflow_emulator_host``.
    :param url: the URL of the HTTP server that controls the fake Dataflow, for example ``http://127.0.0.1:40123``.
    """

    def __init__(self, host: str, url: str) -> None:
        self.host = host
        self.url = url

    def tell(self, what: str, *positional: Any, **named: Any) -> Any:
        """Call a method of :class:`FakeDataflow` or of :class:`Trouble` by its name.

        For example, ``tell("script", "etl", {"state": "RUNNING"})`` calls ``script``.

        :raises ValueError: if the method does not exist, or if the method raised an error.
        """
        return self._send("/tell", {"what": what, "positional": positional, "named": named})

    def set(self, **settings: Any) -> None:
        """Set attributes of the fake Dataflow: ``second_launch``, ``list_lag``, ``get_lag``, ``label_lag``,
        ``page_limit`` or ``failed_location``.
        """
        self._send("/set", settings)

    def report(self) -> dict[str, Any]:
        """Return the calls and jobs of the fake Dataflow as ``{"calls": {method: count}, "jobs": [...]}``."""
        answer: dict[str, Any] = self._send("/", None)
        return answer

    def _send(self, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data=data)  # noqa: S310
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise ValueError(error.read().decode()) from None


@contextmanager
def dataflow_process(port: int = 0) -> Iterator[DataflowControl]:
    """Run a fake Dataflow in a separate process.

    :param port: the port of the gRPC server of the fake Dataflow; 0 selects a free port.
    """
    command = [sys.executable, "-P", "-m", "deferrable_ops.testing.dataflow", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
    try:
        assert process.stdout is not None
        addresses = json.loads(process.stdout.readline())
        yield DataflowControl(addresses["dataflow"], addresses["control"])
    finally:
        process.kill()
        process.wait()


async def serve_control(fake: FakeDataflow, port: int) -> str:
    """Start the HTTP server that controls a fake Dataflow, and return its URL."""
    app = web.Application()

    async def report(_request: web.Request) -> web.Response:
        return web.json_response(fake.report())

    async def tell(request: web.Request) -> web.Response:
        command = await request.json()
        try:
            method = _method(fake, command["what"])
            result = method(*command.get("positional", ()), **command.get("named", {}))
            if hasattr(result, "__await__"):
                result = await result
        except (LookupError, TypeError, ValueError) as error:
            raise web.HTTPBadRequest(text=f"{type(error).__name__}: {error}") from None
        return web.json_response(result)

    async def set_settings(request: web.Request) -> web.Response:
        for name, value in (await request.json()).items():
            if name not in _SETTINGS:
                raise web.HTTPBadRequest(
                    text=f"there is no setting {name}; give one of {', '.join(sorted(_SETTINGS))}"
                )
            setattr(fake, name, value)
        return web.json_response(None)

    app.add_routes([web.get("/", report), web.post("/tell", tell), web.post("/set", set_settings)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}"


def _method(fake: FakeDataflow, name: str) -> Any:
    if name in {"script", "move", "say", "replace", "connect", "disconnect"}:
        return getattr(fake, name)
    if name in {"fail", "lose_replies", "delay", "mend"}:
        return getattr(fake.trouble, name)
    raise LookupError(f"the fake Dataflow server has no method {name}")
