"""Answers are bounded, even if another program listens on supervisord's socket."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from xmlrpc import client

import pytest

from deferrable_ops.exceptions import SupervisordRefused, SupervisordUnavailable
from deferrable_ops.upstreams.supervisord import xmlrpc as supervisord_xmlrpc
from deferrable_ops.upstreams.supervisord.client import Supervisord, SupervisordAddress, use_supervisord

MB = 2**20


@asynccontextmanager
async def answering(folder: Path, head: str, body: bytes, times: int = 1) -> AsyncIterator[Supervisord]:
    """Return a client of a socket that answers each request with ``head`` and ``times`` copies of ``body``."""
    path = folder / "s.sock"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            requests.append(await reader.readuntil(b"</methodCall>"))
            writer.write(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode())
            for _ in range(times):
                writer.write(body)
                await writer.drain()
                sent[0] += len(body)
        except OSError:
            pass
        finally:
            writer.close()

    requests.clear()
    sent[0] = 0
    async with (
        await asyncio.start_unix_server(serve, path),
        use_supervisord(SupervisordAddress(socket=path)) as found,
    ):
        yield found


requests: list[bytes] = []
sent = [0]


@pytest.mark.parametrize("head", ["Connection: close", f"Content-Length: {2**40}"])
async def test_endless_answer_is_aborted(tmp_path: Path, head: str) -> None:
    async with answering(tmp_path, head, b"x" * MB, times=10_000) as found:
        with pytest.raises(SupervisordUnavailable, match=r"s\.sock sends more than 16 MB"):
            await found.processes()
        assert 15 * MB < sent[0] < 32 * MB


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_compressed_answer_is_neither_requested_nor_decompressed(tmp_path: Path, encoding: str) -> None:
    body = gzip.compress(client.dumps(("x" * (200 * MB // 10),), methodresponse=True).encode())
    head = f"Content-Encoding: {encoding}\r\nContent-Length: {len(body)}"
    async with answering(tmp_path, head, body) as found:
        with pytest.raises(supervisord_xmlrpc.UnreadableAnswer):
            await found.processes()
    assert b"accept-encoding: identity\r\n" in requests[0].lower()


async def test_long_answer_is_parsed_in_a_thread_and_a_short_one_on_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_in = []

    def answer(body: bytes) -> Any:
        read_in.append(threading.current_thread() is threading.main_thread())
        return original(body)

    original = supervisord_xmlrpc.answer
    monkeypatch.setattr(supervisord_xmlrpc, "answer", answer)
    for number, length in enumerate((1000, 2**18, 15 * MB)):
        text = "x" * length
        body = client.dumps((text,), methodresponse=True).encode()
        (tmp_path / str(number)).mkdir()
        async with answering(tmp_path / str(number), f"Content-Length: {len(body)}", body) as found:
            assert await found.call("x") == text
    assert read_in == [True, False, False]


async def test_reason_of_an_error_is_truncated(tmp_path: Path) -> None:
    body = client.dumps(client.Fault(92, "CANT_REREAD: " + "x" * MB)).encode()
    async with answering(tmp_path, f"Content-Length: {len(body)}", body) as found:
        with pytest.raises(SupervisordRefused, match="refused x: CANT_REREAD: xxx") as refused:
            await found.call("x")
    assert (refused.value.code, len(str(refused.value)) < 1100) == (92, True)
