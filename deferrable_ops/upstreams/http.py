"""Sends HTTP requests. All callers on an event loop share one HTTP session.

A caller can pass a function that is called immediately before its request is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from deferrable_ops.exceptions import DeferrableOpsError, InputError
from deferrable_ops.shared import share

if TYPE_CHECKING:
    import aiohttp

# Only this much of a response body is read. It is enough for a job's id or an error page.
_MAX_BODY_BYTES = 65_536
_BODY_TIMEOUT = 10.0
_REQUEST_TIMEOUT, _CONNECT_TIMEOUT = 60.0, 20.0


class RequestFailed(DeferrableOpsError, ConnectionError):
    """Raised if the HTTP server could not be reached, or if the connection to the server was lost.

    :param error: the exception that the HTTP client raised. The text of the HTTP client's exception may contain the
        URL, and the URL may contain a secret.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.kind = type(error).__name__


class InvalidUrl(RequestFailed, InputError):
    """Raised if no request can be sent to a URL, because the URL is invalid."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """An HTTP request to send.

    :param json: an object that is sent as JSON in the request's body. If ``json`` is None, the body is ``data``,
        unchanged.
    :param auth: the user name and the password for basic authentication, or None for a request without basic
        authentication.
    :param secrets: strings that must not appear in messages or logs, in addition to the values in ``auth``.
    """

    method: str
    url: str
    headers: dict[str, str]
    json: Any = None
    data: str | dict[str, str] | None = None
    auth: tuple[str, str] | None = None
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An HTTP response.

    :param text: the body of the response, cut off after 64 KiB.
    :param retry_after: the number of seconds in the header ``Retry-After``, or None if the response has no such header.
    """

    status: int
    text: str
    retry_after: float | None


async def send(
    request: HttpRequest, *, before_send: Callable[[], Awaitable[object]] | None = None
) -> HttpResponse:
    """Send an HTTP request, and return the server's response.

    A response with a status code of 400 or more does not raise an exception. Redirects are not followed.

    :param before_send: a function that is awaited when the connection is open, before any data is sent. If this
        function raises an error, the request is not sent.
    :raises InvalidUrl: if the URL is invalid.
    :raises RequestFailed: if the server could not be reached, or the connection to the server was lost.
    :raises TimeoutError: if the complete response did not arrive within 60 s.
    """
    async with shared_session() as session:
        import aiohttp

        try:
            async with session.request(
                request.method,
                request.url,
                headers=request.headers,
                json=request.json,
                data=request.data,
                auth=aiohttp.BasicAuth(*request.auth) if request.auth else None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT, connect=_CONNECT_TIMEOUT),
                trace_request_ctx=before_send,
            ) as response:
                return HttpResponse(response.status, await _text(response), _retry_after(response))
        except TimeoutError:
            raise
        except aiohttp.InvalidURL as error:
            raise InvalidUrl(error) from error
        except aiohttp.ClientError as error:
            raise RequestFailed(error) from error


def shared_session() -> AbstractAsyncContextManager[aiohttp.ClientSession]:
    """Return a context manager for the HTTP session that all callers on this event loop share.

    The session stays open until no caller is inside its ``with`` block.
    """
    return share("http", _open_session, _close_session)


async def import_aiohttp() -> None:
    """Import aiohttp in a thread. In the event loop, the first import would block for a long time."""
    await asyncio.to_thread(import_module, "aiohttp")


async def _open_session() -> aiohttp.ClientSession:
    await import_aiohttp()
    import aiohttp

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(_before_send)
    trace.on_connection_reuseconn.append(_before_send)
    return aiohttp.ClientSession(
        # Limit the connections per host, not in total, so that an unresponsive host does not block the others.
        connector=aiohttp.TCPConnector(limit=0, limit_per_host=100),
        # Tasks must not share cookies.
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[trace],
        trust_env=True,
    )


async def _close_session(session: aiohttp.ClientSession) -> None:
    await session.close()


async def _before_send(_session: aiohttp.ClientSession, context: SimpleNamespace, _parameters: Any) -> None:
    if context.trace_request_ctx is not None:
        await context.trace_request_ctx()


async def _text(response: aiohttp.ClientResponse) -> str:
    import aiohttp

    # The status already shows whether the work was launched. An incomplete or malformed body must not cause a retry.
    body = bytearray()
    # TimeoutError is a subclass of OSError.
    with suppress(aiohttp.ClientError, OSError):
        async with asyncio.timeout(_BODY_TIMEOUT):
            while chunk := await response.content.read(_MAX_BODY_BYTES - len(body)):
                body += chunk
    try:
        return body.decode(response.charset or "utf-8", "replace")
    except (LookupError, ValueError):
        # The response has an unknown charset.
        return body.decode("utf-8", "replace")


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        # There is no such header, or it is a date.
        return None
