"""A fake outside service on loopback, which records requests and sends the responses that a test defines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One received request.

    :param headers: the headers of the request, with names in lower case.
    :param body: the JSON value of the request's body, a string if the body is not JSON, or None if the body is empty.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass(slots=True)
class OutsideService:
    """A fake service that accepts every request, unless the test defines other responses in `answers`.

    :param url: the service's address, such as ``http://127.0.0.1:40123``.
    :param requests: the received requests, oldest first.
    :param answers: the responses to the next requests, each as (status, JSON value). When `answers` is empty, the
        service responds with status 202 and ``{}``.
    """

    url: str = ""
    requests: list[ReceivedRequest] = field(default_factory=list)
    answers: list[tuple[int, Any]] = field(default_factory=list)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def next_request(self, within: float = 10.0) -> ReceivedRequest:
        """If no request has arrived since the last call of this method, wait for a request. Return the newest request.

        :param within: how many seconds to wait for a request.
        :raises AssertionError: if no request was received within this time.
        """
        try:
            await asyncio.wait_for(self._arrived.wait(), within)
        except TimeoutError:
            raise AssertionError(
                f"no request was received within {within:g} s; await the task's outcome() to see its error"
            ) from None
        self._arrived.clear()
        return self.requests[-1]

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json() if request.can_read_body else None
        except ValueError:
            body = await request.text()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(ReceivedRequest(request.method, request.path, headers, body))
        self._arrived.set()
        status, answer = self.answers.pop(0) if self.answers else (202, {})
        return web.json_response(answer, status=status)


@asynccontextmanager
async def outside_service() -> AsyncIterator[OutsideService]:
    """Run a fake outside service on a free port of the loopback interface."""
    service = OutsideService()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", service._receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    service.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield service
    finally:
        await runner.cleanup()
