"""Checks the response of an HTTP service."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from deferrable_ops.checks.base import ReadyCheck, require_seconds, require_text
from deferrable_ops.exceptions import InputError
from deferrable_ops.plain_data import is_known_later
from deferrable_ops.upstreams.http import HttpRequest, RequestFailed, send

_METHODS = ("GET", "HEAD", "POST", "PUT", "OPTIONS")


@dataclass
class HttpCheck(ReadyCheck):
    """A check that passes if the response to a request has an expected status and body. Redirects are not followed.

    :param url: the complete URL to which the request is sent. If the URL or `headers` contain a secret, write the
        secret as a template, for example ``{{ conn.orders.password }}``. The triggerer renders the template.
    :param method: the HTTP method: GET (the default), HEAD, POST, PUT or OPTIONS. The request has no body.
    :param headers: the headers of the request, as a dict of strings; if `headers` is None (the default), no headers are
        added.
    :param expected_status: the HTTP status of the response with which the check passes, or a list of such statuses. If
        `expected_status` is None (the default), the check passes with every status from 200 to 299.
    :param contains: a string that must occur in the first 64 KiB of the response's body; if `contains` is None (the
        default), every body is accepted.
    :param timeout: timeout of the request in seconds. If the response is not complete by then, the result is
        ``Result.FAIL``.
    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
    """

    url: str
    method: str = field(default="GET", kw_only=True)
    headers: Mapping[str, str] | None = field(default=None, kw_only=True, repr=False)
    expected_status: int | list[int] | None = field(default=None, kw_only=True)
    contains: str | None = field(default=None, kw_only=True)
    timeout: float = field(default=10.0, kw_only=True)

    def __post_init__(self) -> None:
        """Validate the arguments of the check."""
        super().__post_init__()
        require_text("url", self.url)
        if not is_known_later(self.url):
            parts = urlsplit(self.url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise InputError("url= must be a complete URL such as https://orders.example.com/health")
        if self.method not in _METHODS:
            raise InputError(f"method={self.method!r} must be one of {', '.join(_METHODS)}")
        if self.headers is not None:
            _check_headers(self.headers)
            self.headers = dict(self.headers)
        if self.contains is not None:
            require_text("contains", self.contains)
        require_seconds("timeout", self.timeout)
        self.expected_status = _statuses(self.expected_status)

    async def failure_reason(self) -> str | None:
        """Send the request once. Return the reason if the check fails, or None if the check passes."""
        place = _without_secrets(self.url)
        try:
            async with asyncio.timeout(self.timeout):
                answer = await send(HttpRequest(self.method, self.url, dict(self.headers or {})))
        except TimeoutError:
            return f"{place} did not answer within {self.timeout:g} s"
        except RequestFailed as error:
            return f"{place} could not be reached: {error.kind}"
        except (OSError, ValueError) as error:
            return f"{place} could not be reached: {type(error).__name__}"
        expected = self.expected_status
        if answer.status not in expected if isinstance(expected, list) else not 200 <= answer.status < 300:
            return (
                f"{place} answered with the status {answer.status}, which is not one of the expected statuses"
            )
        if self.contains is not None and self.contains not in answer.text:
            return f"{place} answered, but the first 64 KiB of the body do not contain the text of contains="
        return None


def _statuses(expected: Any) -> list[int] | None:
    if expected is None:
        return None
    statuses = [expected] if isinstance(expected, int) else expected
    if not isinstance(statuses, (list, tuple, set, range)) or not statuses:
        raise InputError(f"expected_status={expected!r} must be an HTTP status, or a list of HTTP statuses")
    for status in statuses:
        if isinstance(status, bool) or not isinstance(status, int) or not 100 <= status <= 599:
            raise InputError(
                f"expected_status={expected!r} contains {status!r}, which is not an HTTP status; use 100 to 599"
            )
    return list(statuses)


def _check_headers(headers: Any) -> None:
    if not isinstance(headers, Mapping) or not all(
        isinstance(name, str) and isinstance(value, str) for name, value in headers.items()
    ):
        raise InputError("headers= must be a dict of strings")


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"
