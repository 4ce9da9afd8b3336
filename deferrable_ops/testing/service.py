"""An outside service on loopback: it takes launches, remembers them, and answers as told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One request as it arrived.

    :param headers: by lower-case name.
    :param body: its JSON; its text when it is not JSON; None when it is empty.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass(slots=True)
class OutsideService:
    """A service that accepts every request until told otherwise.

    :param url: where it listens, as ``http://127.0.0.1:40123``.
    :param requests: what has arrived, the oldest first.
    :param answers: what it answers next, as (status, JSON); when there is none left, 202 and ``{}``.
    """

    url: str = ""
    requests: list[ReceivedRequest] = field(default_factory=list)
    answers: list[tuple[int, Any]] = field(default_factory=list)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def next_request(self, within: float = 10.0) -> ReceivedRequest:
        """Return the newest request, once one that was not returned before has arrived.

        :param within: seconds.
        :raises AssertionError: none came in that time.
        """
        try:
            await asyncio.wait_for(self._arrived.wait(), within)
        except TimeoutError:
            raise AssertionError(
                f"no request came within {within:g} s; the task's outcome() tells why, if it has failed"
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
    """Run an outside service on a free port of loopback."""
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
