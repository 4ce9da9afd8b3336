"""A proxy in front of an AWS server: it counts what is asked, and answers as badly as it is told to."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

import aiohttp
from aiohttp import web


@dataclass(slots=True)
class Call:
    """One request.

    :ivar began: on the monotonic clock.
    """

    action: str
    began: float
    authorization: str
    request: Any = None
    status: int | None = None
    answer: Any = None


@dataclass(slots=True)
class Fault:
    """What happens to some requests in place of an answer.

    :param status: the answer's; 0 breaks the connection off.
    :param reaches_server: the request is passed on all the same, and the answer is lost.
    :param held: the request waits until this is set, and is then passed on as usual.
    """

    action: str
    times: float
    status: int = 0
    code: str = ""
    message: str = "told to fail"
    reaches_server: bool = False
    held: asyncio.Event | None = None
    after: Callable[[dict[str, Any]], dict[str, Any]] | None = field(default=None)


class FaultyProxy:
    """Passes requests on, in a thread of its own.

    :param origin: of the server behind it.
    """

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._faults: deque[Fault] = deque()
        self._session: aiohttp.ClientSession
        self._runner: web.AppRunner
        self.calls: list[Call] = []

    def start(self) -> str:
        """Start it, and return its URL."""
        self._thread.start()
        return str(self._ask(self._start()))

    def stop(self) -> None:
        """Stop it."""
        self._ask(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def count(self, action: str, part: str = "") -> int:
        """Return how often an action was asked for.

        :param part: which the request must hold, as a queue's name.
        """
        return len(self.calls_of(action, part))

    def calls_of(self, action: str, part: str = "") -> list[Call]:
        """Return the requests of an action, in their order."""
        return [call for call in list(self.calls) if call.action == action and part in str(call.request)]

    def under_way(self, action: str, part: str = "") -> int:
        """Return how many requests of an action are not answered yet."""
        return sum(call.status is None for call in self.calls_of(action, part))

    def fail(
        self, action: str, status: int = 0, code: str = "", *, times: float = float("inf"), **more: Any
    ) -> Fault:
        """Let requests of an action fail, the next ones or until it is healed.

        :param status: of the answer; 0 breaks the connection off.
        :param code: AWS' code of the error.
        """
        fault = Fault(action, times, status, code, **more)
        self._faults.append(fault)
        return fault

    def change(
        self, action: str, after: Callable[[dict[str, Any]], dict[str, Any]], times: float = 1
    ) -> Fault:
        """Change the answers to the next requests of an action."""
        return self.fail(action, times=times, after=after)

    def hold(self, action: str) -> Fault:
        """Hold the next request of an action up, until the fault is healed."""
        return self.fail(action, times=1, held=asyncio.Event())

    def heal(self, fault: Fault | None = None) -> None:
        """Take a fault away; None: all of them."""
        for one in [fault] if fault else list(self._faults):
            if one in self._faults:
                self._faults.remove(one)
            if one.held is not None:
                self._loop.call_soon_threadsafe(one.held.set)

    async def _start(self) -> str:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        application = web.Application(client_max_size=16 * 1_048_576)
        application.router.add_route("*", "/{path:.*}", self._pass_on)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        call = Call(_action(request, body), time.monotonic(), request.headers.get("Authorization", ""))
        call.request = body.decode(errors="replace")
        self.calls.append(call)
        fault = self._fault(call.action)
        if fault is not None and fault.held is not None:
            await fault.held.wait()
            fault = None
        if fault is not None and fault.after is None and not fault.reaches_server:
            return self._fail(request, call, fault)
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        url = self._origin + request.path_qs
        async with self._session.request(request.method, url, data=body, headers=headers) as answer:
            content, status, kind = await answer.read(), answer.status, answer.content_type
        if fault is not None and fault.after is None:
            return self._fail(request, call, fault)
        if fault is not None and fault.after is not None:
            content = json.dumps(fault.after(json.loads(content))).encode()
        call.status, call.answer = status, content
        return web.Response(body=content, status=status, content_type=kind)

    def _fault(self, action: str) -> Fault | None:
        for fault in self._faults:
            if fault.action in (action, "*"):
                fault.times -= 1
                if fault.times <= 0:
                    self._faults.remove(fault)
                return fault
        return None

    def _fail(self, request: web.Request, call: Call, fault: Fault) -> web.StreamResponse:
        call.status = fault.status
        if fault.status == 0:
            assert request.transport is not None, "the connection is gone already"
            request.transport.close()
            return web.Response()
        if "X-Amz-Target" not in request.headers:
            error = f"<Code>{fault.code}</Code><Message>{escape(fault.message)}</Message>"
            text = f"<ErrorResponse><Error><Type>Sender</Type>{error}</Error></ErrorResponse>"
            return web.Response(text=text, status=fault.status, content_type="text/xml")
        body = {"__type": f"com.amazonaws.sqs#{fault.code}", "message": fault.message}
        return web.json_response(body, status=fault.status)

    def _ask(self, question: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(question, self._loop).result(30)


def _action(request: web.Request, body: bytes) -> str:
    """Return what is asked for, in AWS' JSON protocol or in its older one."""
    target = request.headers.get("X-Amz-Target", "")
    if target:
        return target.rpartition(".")[2]
    return parse_qs(body.decode(errors="replace")).get("Action", [""])[0]
