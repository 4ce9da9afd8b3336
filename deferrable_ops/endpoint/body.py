"""Reads request bodies within limits of size and time, and parses the JSON in them."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any, Final, NoReturn

from starlette.types import Receive, Scope

from deferrable_ops.endpoint.responses import RequestRejected
from deferrable_ops.plain_data import MAX_PAYLOAD_DEPTH, is_nested_deeper

BODY_SECONDS: Final = 30.0
"""Seconds within which the body of a request must be complete."""

_CHECK_INTERVAL = 1.0
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class Disconnected(Exception):
    """The client disconnected before its request was complete."""


class BodyReader:
    """Reads request bodies within a time limit.

    All requests share one timer, because a separate timer for each request would make each request 6 µs slower.

    :param seconds: the time limit, in seconds after the call of :meth:`read`. The endpoint checks once a second whether
        a body exceeds this limit.
    """

    def __init__(self, seconds: float = BODY_SECONDS) -> None:
        self._seconds = seconds
        self._started: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, scope: Scope, receive: Receive, limit: int) -> bytes:
        """Return the whole body.

        :param limit: the maximum size of the body, in bytes. The rest of a larger body is not read.
        :raises RequestRejected: with status 413, if the body is larger than `limit`; with status 408, if the body was
            not complete in time.
        :raises Disconnected: if the client disconnected.
        """
        announced = header(scope, b"content-length")
        if announced is not None and announced.isdigit() and int(announced) > limit:
            raise _too_large(limit)
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._started[task] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(min(_CHECK_INTERVAL, self._seconds), self._cancel_late, loop)
        try:
            return await _read(receive, limit)
        except asyncio.CancelledError:
            if task in self._late and task.uncancel() == 0:
                raise _too_slow(self._seconds) from None
            raise
        finally:
            del self._started[task]
            self._late.discard(task)

    def _cancel_late(self, loop: asyncio.AbstractEventLoop) -> None:
        for task, started_at in self._started.items():
            if started_at + self._seconds <= loop.time() and task not in self._late:
                self._late.add(task)
                task.cancel()
        again = min(_CHECK_INTERVAL, self._seconds)
        self._timer = loop.call_later(again, self._cancel_late, loop) if self._started else None


async def _read(receive: Receive, limit: int) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return body


def parse_json(body: bytes) -> Any:
    """Parse JSON, and check that Airflow, Postgres and SQLite can store the value.

    NaN and Infinity are rejected, because RFC 8259 defines JSON without NaN and Infinity. The following values are also
    rejected, because they cannot be stored:

    * an integer that does not fit into 64 bits, or a number that does not fit into a double, because XComs are sent as
      MessagePack,
    * the character U+0000, or one of U+D800 to U+DFFF without its other half, because Postgres cannot store them, or
    * more nested levels than :data:`MAX_PAYLOAD_DEPTH`.

    :raises RequestRejected: with status 400, if the body is not JSON or its value cannot be stored.
    """
    if not body:
        raise RequestRejected(400, "the body is empty, which is not JSON; send null or {}")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise RequestRejected(
            400, f"the body is not JSON, because byte {error.start} is not UTF-8; encode it as UTF-8"
        ) from None
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise RequestRejected(400, f"the body is not JSON: {error}") from None
    if text.count("[") + text.count("{") > MAX_PAYLOAD_DEPTH and is_nested_deeper(value, MAX_PAYLOAD_DEPTH):
        raise _too_deep()
    if "\\u" in text and _has_unstorable_character(text, value):
        raise RequestRejected(
            400,
            "the body cannot be stored; remove \\u0000, and every \\ud800 to \\udfff without its other half",
        )
    return value


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return the value of the first header whose name is `name` (in lower case), or None if there is no such header."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def _too_large(limit: int) -> RequestRejected:
    return RequestRejected(
        413,
        f"the body is larger than {limit} bytes; send a smaller body, or raise [deferrable_ops] max_payload_bytes",
    )


def _too_slow(seconds: float) -> RequestRejected:
    return RequestRejected(
        408,
        f"the body was not complete after {seconds:g} s; send the request again",
        ((b"connection", b"close"),),
    )


def _too_deep() -> RequestRejected:
    return RequestRejected(
        400, f"the body is nested deeper than {MAX_PAYLOAD_DEPTH} levels; send fewer levels"
    )


def _has_unstorable_character(text: str, value: Any) -> bool:
    if _ESCAPED_NUL.search(text):
        return True
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**64:
        raise ValueError("an integer exceeds 64 bits; send it as a string")
    return value


def _double(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number is too large for a double (64-bit float); send it as a string")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON value; send null or a string")


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_double, parse_constant=_constant)
