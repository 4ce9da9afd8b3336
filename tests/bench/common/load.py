"""Load on an HTTP endpoint, made with little CPU time: one core must be able to keep another one busy."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Sequence

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


def post(path: str, body: bytes) -> bytes:
    """Return a POST request as it goes over the wire."""
    headers = f"Host: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return f"POST {path} HTTP/1.1\r\n{headers}".encode() + body


async def requests_per_second(port: int, requests: Sequence[bytes], *, connections: int) -> float:
    """Send the requests, each connection one after the other, and return how many were answered a second.

    :raises RuntimeError: an answer is not 200.
    """
    waiting = iter(requests)
    started_at = time.monotonic()
    await asyncio.gather(*(_drain("127.0.0.1", port, waiting) for _ in range(connections)))
    return len(requests) / (time.monotonic() - started_at)


async def _drain(host: str, port: int, waiting: Iterator[bytes]) -> None:
    loop = asyncio.get_running_loop()
    transport, connection = await loop.create_connection(lambda: _Connection(waiting), host, port)
    try:
        await connection.ended
    finally:
        transport.close()


class _Connection(asyncio.Protocol):
    """Sends the next request as soon as the one before is answered."""

    def __init__(self, waiting: Iterator[bytes]) -> None:
        self._waiting = waiting
        self._received = b""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n")
        if not separator or length is None or len(body) < int(length[1]):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self._end(RuntimeError(f"the endpoint answered {self._received[:400]!r}"))
            return
        self._received = b""
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error or ConnectionError("the endpoint closed the connection"))

    def _send(self) -> None:
        request = next(self._waiting, None)
        if request is None:
            self._end(None)
        else:
            self._transport.write(request)

    def _end(self, error: Exception | None) -> None:
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)


async def answered_at_rate(port: int, requests: Sequence[bytes], per_second: float) -> list[float]:
    """Send the requests at a steady rate and return when each was answered, by the machine's monotonic clock."""
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(request: bytes) -> float:
        reader, writer = free.pop() if free else await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if length is None or not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the endpoint answered {head!r}")
        await reader.readexactly(int(length[1]))
        answered_at = time.monotonic()
        free.append((reader, writer))
        return answered_at

    sending = []
    for request in requests:
        sending.append(asyncio.create_task(send(request)))
        await asyncio.sleep(1 / per_second)
    answered = await asyncio.gather(*sending)
    for _, writer in free:
        writer.close()
    return answered
