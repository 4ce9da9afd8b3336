"""HTTP requests that must not be sent by mistake: one shared session, and a check at the last possible moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp

from deferrable_ops.shared import share

_ANSWER_BYTES = 65_536  # what is read of an answer: enough for a job's id or an error page
_ANSWER_SECONDS = 10.0
_REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=60, connect=20)


@dataclass(frozen=True, slots=True)
class Request:
    """A request, ready to be sent.

    :param json: sent as JSON when it is not None; otherwise `data` is sent as it is.
    :param secrets: what of it nothing that is shown may hold, besides its credentials.
    """

    method: str
    url: str
    headers: dict[str, str]
    json: Any = None
    data: str | dict[str, str] | None = None
    auth: tuple[str, str] | None = None
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer.

    :param text: the first 64 KiB of its body.
    :param retry_after: seconds that the service asks to wait; None when it does not.
    """

    status: int
    text: str
    retry_after: float | None


async def send(request: Request, *, before_send: Callable[[], Awaitable[object]] | None = None) -> Answer:
    """Send a request and return the answer, whatever its status. Redirects are not followed.

    :param before_send: awaited when the connection is there and nothing has been written yet; what it raises stops
        the request.
    :raises aiohttp.ClientError: the service could not be reached, or broke off.
    :raises TimeoutError: it did not answer within 60 s.
    """
    async with (
        shared_session() as session,
        session.request(
            request.method,
            request.url,
            headers=request.headers,
            json=request.json,
            data=request.data,
            auth=aiohttp.BasicAuth(*request.auth) if request.auth else None,
            allow_redirects=False,
            timeout=_REQUEST_TIMEOUT,
            trace_request_ctx=before_send,
        ) as response,
    ):
        return Answer(response.status, await _text(response), _retry_after(response))


def shared_session() -> AbstractAsyncContextManager[aiohttp.ClientSession]:
    """Use the session of this event loop. Whoever holds it keeps its connections open for others."""
    return share("http", _open_session, aiohttp.ClientSession.close)


async def _open_session() -> aiohttp.ClientSession:
    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(_before_send)
    trace.on_connection_reuseconn.append(_before_send)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, limit_per_host=100),  # a host that hangs holds up no other
        cookie_jar=aiohttp.DummyCookieJar(),  # tasks must not share each other's sessions
        trace_configs=[trace],
        trust_env=True,
    )


async def _before_send(_session: aiohttp.ClientSession, context: SimpleNamespace, _parameters: Any) -> None:
    if context.trace_request_ctx is not None:
        await context.trace_request_ctx()


async def _text(response: aiohttp.ClientResponse) -> str:
    # The status has said whether the work was launched: a body that breaks off, or lies, must not launch it again.
    body = bytearray()
    with suppress(aiohttp.ClientError, OSError):  # a TimeoutError is an OSError
        async with asyncio.timeout(_ANSWER_SECONDS):
            while chunk := await response.content.read(_ANSWER_BYTES - len(body)):
                body += chunk
    try:
        return body.decode(response.charset or "utf-8", "replace")
    except (LookupError, ValueError):  # the service names an encoding that there is not
        return body.decode("utf-8", "replace")


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):  # absent, or a date
        return None
