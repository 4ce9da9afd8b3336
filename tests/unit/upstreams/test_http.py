"""Errors of the shared HTTP client."""

from __future__ import annotations

import asyncio
import socket

import pytest

from deferrable_ops.upstreams.http import HttpRequest, InvalidUrl, RequestFailed, send


async def test_closed_port_is_a_failed_request_that_names_the_clients_error() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(RequestFailed, match="ClientConnectorError: Cannot connect to host") as failed:
            await send(HttpRequest("GET", f"http://127.0.0.1:{bound.getsockname()[1]}/", {}))
    assert failed.value.kind == "ClientConnectorError"


async def test_lost_connection_is_a_failed_request() -> None:
    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(RequestFailed, match="ServerDisconnectedError"):
            await send(HttpRequest("POST", f"http://127.0.0.1:{port}/", {}, json={}))


async def test_url_without_host_is_invalid() -> None:
    with pytest.raises(InvalidUrl):
        await send(HttpRequest("GET", "no url", {}))


async def test_error_before_sending_is_raised_unchanged() -> None:
    async def refuse() -> None:
        raise LookupError("claim lost")

    async with await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(LookupError, match="claim lost"):
            await send(HttpRequest("POST", f"http://127.0.0.1:{port}/", {}), before_send=refuse)
