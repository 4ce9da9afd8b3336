"""An outside service: it records what it is asked to launch, answers as told, and calls back."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import httpx
from aiohttp import web

from real_airflow.ports import LOOPBACK, free_port
from real_airflow.waiting import wait_until

CALLBACK_PATH = "/deferrable-ops/callbacks/"
NO_CALLBACK = object()


@dataclass(frozen=True)
class Answer:
    """How the service answers one request.

    :param status: of the response.
    :param body: of the response, as JSON.
    :param headers: of the response.
    :param delay: seconds before anything happens; the request is recorded at once.
    :param drop: close the connection instead of answering.
    :param hold: answer only when this is set; see `OutsideService.hold`.
    :param callback: post this payload to the request's callback URL.
    :param callback_after: seconds after the answer; None to call back before answering.
    :param heartbeats: payloads of heartbeats, spread evenly over `callback_after`.
    """

    status: int = 200
    body: Any = field(default_factory=lambda: {"accepted": True})
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0
    drop: bool = False
    hold: threading.Event | None = None
    callback: Any = NO_CALLBACK
    callback_after: float | None = 0
    heartbeats: tuple[Any, ...] = ()


@dataclass(frozen=True)
class ReceivedRequest:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    query: dict[str, str]
    text: str
    at: float

    @property
    def body(self) -> Any:
        """Its JSON."""
        return json.loads(self.text)

    @property
    def idempotency_key(self) -> str | None:
        """What it names itself, the same in every repetition."""
        return self.headers.get("idempotency-key")

    @property
    def callback_url(self) -> str:
        """The address that it wants to be called back on, wherever in the request it stands."""
        if "callback-url" in self.headers:
            return self.headers["callback-url"]
        body = json.loads(self.text) if self.text.startswith(("{", "[")) else self.text
        places = [*self.query.values(), *_strings(body), *self.headers.values()]
        found = [place for place in places if CALLBACK_PATH in place]
        assert found, f"no callback URL in {self}"
        return found[0]


class OutsideService:
    """An HTTP server on a free port, in its own thread. It answers 200 to everything until told otherwise."""

    def __init__(self, address: str = LOOPBACK) -> None:
        self.address = address
        self.port = free_port(address)
        self.url = f"http://{address}:{self.port}"
        self.callback_answers: list[tuple[int, str]] = []
        self._received: list[ReceivedRequest] = []
        self._scripts: dict[str, list[Answer]] = defaultdict(lambda: [Answer()])
        self._holds: list[threading.Event] = []
        self._calling_back: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="outside-service", daemon=True)
        self._started: Future[None] = Future()

    def start(self) -> OutsideService:
        """Begin to listen."""
        self._thread.start()
        self._started.result(timeout=10)
        return self

    def stop(self) -> None:
        """Close the port and every connection."""
        for hold in self._holds:
            hold.set()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)

    def script(self, path: str, *answers: Answer) -> None:
        """Answer the coming requests to a path in this order; the last answer is repeated for ever."""
        self._scripts[path] = list(answers)

    def hold(self, path: str, answer: Answer | None = None) -> threading.Event:
        """Record the requests to a path, but answer none until the returned event is set."""
        released = threading.Event()
        self._holds.append(released)
        answer = answer or Answer()
        self.script(path, Answer(**{**answer.__dict__, "hold": released}))
        return released

    def requests(self, path: str | None = None) -> list[ReceivedRequest]:
        """Return what has arrived so far, the oldest first."""
        return [request for request in list(self._received) if path in (None, request.path)]

    def wait_for_requests(self, path: str, count: int = 1, timeout: float = 60) -> list[ReceivedRequest]:
        """Wait until at least `count` requests to a path have arrived, and return all of them."""
        wait_until(lambda: len(self.requests(path)) >= count, f"{count} requests to {path}", timeout)
        return self.requests(path)

    def call_back(self, request: ReceivedRequest, payload: Any = None, verb: str = "") -> httpx.Response:
        """Call back by hand.

        :param verb: `success`, `failure`, `skip`, `heartbeat`, or nothing for the plain callback address.
        """
        json_payload = {} if payload is None else payload
        return httpx.post(_address(request, verb), json=json_payload, timeout=30, trust_env=False)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._listen())
        self._started.set_result(None)
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _listen(self) -> web.AppRunner:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, self.address, self.port).start()
        return runner

    async def _answer(self, arrived: web.Request) -> web.StreamResponse:
        request = ReceivedRequest(
            arrived.method,
            arrived.path,
            {name.lower(): value for name, value in arrived.headers.items()},
            dict(arrived.query),
            await arrived.text(),
            time.time(),
        )
        script = self._scripts[request.path]
        answer = script.pop(0) if len(script) > 1 else script[0]
        self._received.append(request)

        await asyncio.sleep(answer.delay)
        if answer.hold is not None:
            await asyncio.to_thread(answer.hold.wait)
        if answer.callback is not NO_CALLBACK:
            await self._begin_to_call_back(request, answer)
        if answer.drop and arrived.transport is not None:
            arrived.transport.abort()
        return web.json_response(answer.body, status=answer.status, headers=answer.headers)

    async def _begin_to_call_back(self, request: ReceivedRequest, answer: Answer) -> None:
        calling_back = asyncio.create_task(self._call_back(request, answer))
        self._calling_back.add(calling_back)
        calling_back.add_done_callback(self._calling_back.discard)
        if answer.callback_after is None:
            await calling_back

    async def _call_back(self, request: ReceivedRequest, answer: Answer) -> None:
        pause = (answer.callback_after or 0) / (len(answer.heartbeats) + 1)
        calls = [*(("heartbeat", beat) for beat in answer.heartbeats), ("", answer.callback)]
        async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
            for verb, payload in calls:
                await asyncio.sleep(pause)
                response = await http.post(_address(request, verb), json=payload)
                self.callback_answers.append((response.status_code, response.text))


def _address(request: ReceivedRequest, verb: str) -> str:
    return request.callback_url + (f"/{verb}" if verb else "")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
