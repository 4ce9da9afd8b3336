"""Sends the HTTP requests that launch or cancel external work, without writing their secrets to logs."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from deferrable_ops.backoff import Backoff
from deferrable_ops.error_table import ErrorKind, find_code, kind_of_code
from deferrable_ops.exceptions import LaunchRefused
from deferrable_ops.outages import REPORT_LASTS, http_source, outages
from deferrable_ops.upstreams.http import HttpRequest, HttpResponse, InvalidUrl, RequestFailed, send

_FIRST_BACKOFF, _MAX_BACKOFF = 1.0, 30.0
_MAX_SHOWN_CHARACTERS = 2_000
_HIDDEN = "***"


class LaunchFailed(LaunchRefused):
    """Raised if the service rejected the HTTP request, or did not accept the request within the timeout."""


class LaunchRequest:
    """An HTTP request that launches or cancels external work.

    :param token: the callback token in the request, which must not be written to a log.
    """

    def __init__(self, request: HttpRequest, token: str, log: Any) -> None:
        self._request = request
        self._secrets = [
            token,
            token.rpartition(".")[2],
            *request.secrets,
            *_credentials(request),
            *_secret_headers(request),
        ]
        self._log = log

    @property
    def redacted_url(self) -> str:
        """The method and the URL of the request, without user name, password, query string and callback token."""
        parts = urlsplit(self._request.url)
        host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
        return self.redact(f"{self._request.method} {parts.scheme}://{host}{parts.path}")

    def redact(self, text: str) -> str:
        """Mask the secrets of the request in a text, such as a response that quotes the request."""
        for secret in self._secrets:
            if secret:
                text = text.replace(secret, _HIDDEN)
        return text

    async def send_with_retries(
        self, check: Callable[[], Awaitable[object]], timeout: float, source: str | None = None
    ) -> HttpResponse:
        """Send the request, with retries, until the service accepts it, and return the response.

        After connection errors and the HTTP statuses 429 and 5xx, the request is retried after growing pauses.

        :param check: a function that is awaited immediately before each request. If the function raises an exception,
            the request is not sent.
        :param timeout: the number of seconds after which the request is not retried any more.
        :param source: the name under which outages of the service are reported. If None, the host of the URL is this
            name.
        :raises LaunchFailed: if the service rejected the request, or did not accept the request within `timeout`.
        """
        source = source or http_source(None, self._request.url)
        stop_at = time.monotonic() + timeout
        backoff = Backoff(first_pause=_FIRST_BACKOFF, longest_pause=_MAX_BACKOFF)
        while True:
            retry_after: float | None = None
            try:
                response = await send(self._request, before_send=check)
            except InvalidUrl:
                # The error's message is the URL, which may hold secrets.
                raise LaunchFailed(
                    "no request can be sent to this task's URL, because the URL is not valid; correct url=, or path= "
                    "and the host of the connection http_conn_id="
                ) from None
            except RequestFailed as error:
                problem = self.redact(str(error))
            except OSError as error:
                # This includes TimeoutError.
                problem = self.redact(f"{type(error).__name__}: {error}")
            else:
                if 200 <= response.status < 300:
                    outages.recovered(source)
                    return response
                problem = self._describe(response)
                if kind_of_code("http", str(response.status)) is not ErrorKind.TEMPORARY:
                    # The table names the statuses that stay the same if the request is repeated.
                    retry_can_help = find_code("http", str(response.status)) is None
                    raise LaunchFailed(problem, retry_can_help=retry_can_help)
                # Some services answer Retry-After: 0 while they are down.
                if response.retry_after is not None:
                    retry_after = max(response.retry_after, _FIRST_BACKOFF)
            pause = backoff.failed()
            delay = pause if retry_after is None else retry_after
            if time.monotonic() + delay > stop_at:
                raise LaunchFailed(
                    f"the request to {self.redacted_url} was not accepted within launch_timeout "
                    f"({timeout:g} s): {problem}",
                    retry_can_help=True,
                )
            outages.failed(source, problem, lasts=delay + REPORT_LASTS)
            self._log.warning("%s; sending the request again in %.1f s", problem, delay)
            await asyncio.sleep(delay)

    async def send_once(self) -> None:
        """Send the request that cancels the external work, without retries.

        The HTTP statuses 404, 409 and 410 count as success, because they mean that the work has already ended.

        :raises LaunchFailed: if the service responded with any other status of 300 or above. The error's
            ``retry_can_help`` is False only if the service would respond to a repeated request with the same status.
        """
        response = await send(self._request)
        if response.status >= 300 and response.status not in (404, 409, 410):
            kind = kind_of_code("http", str(response.status), default=ErrorKind.TEMPORARY)
            raise LaunchFailed(self._describe(response), retry_can_help=kind is ErrorKind.TEMPORARY)

    def _describe(self, response: HttpResponse) -> str:
        text = self.redact(response.text.strip())[:_MAX_SHOWN_CHARACTERS]
        return f"{self.redacted_url} answered with HTTP status {response.status}" + (
            f": {text}" if text else ""
        )


def _credentials(request: HttpRequest) -> list[str]:
    if request.auth is None:
        return []
    return [request.auth[1], b64encode(":".join(request.auth).encode("latin1")).decode()]


def _secret_headers(request: HttpRequest) -> list[str]:
    names = ("authorization", "cookie", "proxy-authorization", "x-api-key")
    return [value.rpartition(" ")[2] for name, value in request.headers.items() if name.lower() in names]
