"""Sending a filled-in request until it is answered, without ever showing what it holds."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from deferrable_ops.exceptions import DeferrableOpsError
from deferrable_ops.upstreams.http import Answer, Request, send

_PAUSE_FIRST, _PAUSE_MOST = 1.0, 30.0
_SHOWN_CHARACTERS = 2_000
_HIDDEN = "***"


class LaunchFailed(DeferrableOpsError):
    """The service refused the request, or could not be reached in time."""


class Launch:
    """A request that is about to be sent.

    :param token: the callback token in it, which nothing that is shown may hold.
    """

    def __init__(self, request: Request, token: str, log: Any) -> None:
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
    def shown_url(self) -> str:
        """The request's method and URL without user, query and token."""
        parts = urlsplit(self._request.url)
        host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
        return self.redact(f"{self._request.method} {parts.scheme}://{host}{parts.path}")

    def redact(self, text: str) -> str:
        """Return a text of the service's, which may echo the request, without the request's secrets."""
        for secret in self._secrets:
            if secret:
                text = text.replace(secret, _HIDDEN)
        return text

    async def send_until_answered(self, check: Callable[[], Awaitable[object]], timeout: float) -> Answer:
        """Send the request, again after connection errors, 429 and 5xx, and return the answer that accepts it.

        :param check: awaited immediately before each sending; what it raises ends the matter.
        :param timeout: seconds after which it is given up.
        :raises LaunchFailed: the service refused, or did not accept in time.
        """
        give_up_at, pause = time.monotonic() + timeout, _PAUSE_FIRST
        while True:
            retry_after: float | None = None
            try:
                answer = await send(self._request, before_send=check)
            except aiohttp.InvalidURL:  # its message is the URL, which may hold secrets
                raise LaunchFailed("url= is not a URL to which a request can be sent") from None
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                problem = self.redact(f"{type(error).__name__}: {error}")
            else:
                if 200 <= answer.status < 300:
                    return answer
                problem = self._describe(answer)
                if answer.status != 429 and answer.status < 500:
                    raise LaunchFailed(problem)
                if answer.retry_after is not None:  # some services ask for 0 s while they are down
                    retry_after = max(answer.retry_after, _PAUSE_FIRST)
            wait = retry_after if retry_after is not None else pause * random.uniform(0.5, 1.0)  # noqa: S311
            if time.monotonic() + wait > give_up_at:
                raise LaunchFailed(
                    f"{self.shown_url} was not accepted within launch_timeout ({timeout:g} s): {problem}"
                )
            self._log.warning("%s; sending it again in %.1f s", problem, wait)
            await asyncio.sleep(wait)
            pause = min(2 * pause, _PAUSE_MOST)

    async def send_once(self) -> None:
        """Send the request.

        :raises LaunchFailed: the service refused. 404, 409 and 410 are fine: there is nothing left to stop.
        """
        answer = await send(self._request)
        if answer.status >= 300 and answer.status not in (404, 409, 410):
            raise LaunchFailed(self._describe(answer))

    def _describe(self, answer: Answer) -> str:
        text = self.redact(answer.text.strip())[:_SHOWN_CHARACTERS]
        return f"{self.shown_url} answered {answer.status}" + (f": {text}" if text else "")


def _credentials(request: Request) -> list[str]:
    if request.auth is None:
        return []
    return [request.auth[1], aiohttp.BasicAuth(*request.auth).encode().removeprefix("Basic ")]


def _secret_headers(request: Request) -> list[str]:
    names = ("authorization", "cookie", "proxy-authorization", "x-api-key")
    return [value.rpartition(" ")[2] for name, value in request.headers.items() if name.lower() in names]
