"""What the endpoint answers: always JSON, never cached, and never the address of a page that came before."""

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
"""On every answer: a token in the path must not travel on in a Referer, nor stay in a cache."""

_JSON: Final[tuple[Header, ...]] = ((b"content-type", b"application/json"), *PRIVACY)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    :param body: a JSON text.
    """

    status: int
    body: bytes
    headers: tuple[Header, ...] = ()


class Refused(Exception):
    """The request is answered with an error, and goes no further."""

    def __init__(self, status: int, error: str, headers: tuple[Header, ...] = (), **fields: Any) -> None:
        super().__init__(error)
        self.answer = json_answer(status, {"error": error, **fields}, headers)


def json_answer(status: int, body: dict[str, Any], headers: tuple[Header, ...] = ()) -> Answer:
    """Return an answer whose body is this object."""
    return Answer(status, json.dumps(body).encode(), headers)


async def send_answer(send: Send, answer: Answer) -> None:
    """Send a whole answer."""
    length = (b"content-length", b"%d" % len(answer.body))
    headers = [*_JSON, length, *answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def with_privacy(send: Send) -> Send:
    """Return a ``send`` that adds the privacy headers to the answers of FastAPI's own routes."""

    async def send_with_privacy(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(h for h in PRIVACY if h[0] not in given)]
        await send(message)

    return send_with_privacy
