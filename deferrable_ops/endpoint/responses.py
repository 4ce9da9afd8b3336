"""Responses of the endpoint: always JSON, never cached, and with the referrer policy no-referrer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from starlette.types import Message, Send

Header = tuple[bytes, bytes]

PRIVACY: Final[tuple[Header, ...]] = (
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
"""Headers of every response. These headers keep a token in the path out of Referer headers and caches."""

_JSON: Final[tuple[Header, ...]] = ((b"content-type", b"application/json"), *PRIVACY)


@dataclass(frozen=True, slots=True)
class JsonResponse:
    """A complete HTTP response of the endpoint.

    :param body: the response's body: JSON in UTF-8.
    """

    status: int
    body: bytes
    headers: tuple[Header, ...] = ()


class RequestRejected(Exception):
    """Raised if the endpoint rejects a request. The response has the status and the message of this exception."""

    def __init__(self, status: int, error: str, headers: tuple[Header, ...] = (), **fields: Any) -> None:
        super().__init__(error)
        self.response = json_response(status, {"error": error, **fields}, headers)


def json_response(status: int, body: dict[str, Any], headers: tuple[Header, ...] = ()) -> JsonResponse:
    """Return a response whose body is a JSON object."""
    return JsonResponse(status, json.dumps(body).encode(), headers)


async def send_response(send: Send, response: JsonResponse) -> None:
    """Send a complete response with the ASGI function `send`."""
    length = (b"content-length", b"%d" % len(response.body))
    headers = [*_JSON, length, *response.headers]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


def with_privacy(send: Send) -> Send:
    """Return an ASGI ``send`` function that adds the privacy headers to the responses of FastAPI's own routes."""

    async def send_with_privacy(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(h for h in PRIVACY if h[0] not in given)]
        await send(message)

    return send_with_privacy
