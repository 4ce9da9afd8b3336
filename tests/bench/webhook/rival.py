"""The rival: callbacks taken by one Starlette route, written as tersely as its promises allow.

It checks the same signature, parses the JSON, and answers once a row of the callback is committed; requests
that come during a commit share the next one. It knows no waits: a callback is not judged, not told apart
from its resend, and wakes nobody.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiosqlite
import asyncpg
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

Row = tuple[str, float, str]
WriteAll = Callable[[list[Row]], Awaitable[None]]

_SECRET = b"32 bytes that only this app knows"
_TABLE = "CREATE TABLE callbacks (wait_id TEXT NOT NULL, received_at DOUBLE PRECISION NOT NULL, payload TEXT NOT NULL)"


def token(wait_id: str) -> str:
    """Return the token of a wait."""
    signature = hmac.digest(_SECRET, wait_id.encode(), "sha256")
    return f"{wait_id}.{urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def create_app() -> Starlette:
    """Return the app; its database is in the environment variable ``RIVAL_URL``."""
    return Starlette(routes=[Route("/callbacks/{token}", _take, methods=["POST"])], lifespan=_lifespan)


async def _take(request: Request) -> JSONResponse:
    given = request.path_params["token"]
    wait_id = given.partition(".")[0]
    if not hmac.compare_digest(given, token(wait_id)):
        return JSONResponse({"error": "the token is forged"}, 401)
    body = await request.body()
    try:
        json.loads(body)
    except ValueError:
        return JSONResponse({"error": "the body is not JSON"}, 400)
    received_at = time.time()
    await request.app.state.commit((wait_id, received_at, body.decode()))
    return JSONResponse({"wait": wait_id, "received_at": received_at})


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    url = os.environ["RIVAL_URL"]
    async with (_sqlite if url.startswith("sqlite") else _postgres)(url) as write_all:
        queue: list[tuple[Row, asyncio.Future[None]]] = []
        come = asyncio.Event()

        async def commit(row: Row) -> None:
            future = asyncio.get_running_loop().create_future()
            queue.append((row, future))
            come.set()
            await future

        async def write() -> None:
            while await come.wait():
                come.clear()
                batch = queue[:]
                queue.clear()
                await write_all([row for row, _ in batch])
                for _, future in batch:
                    future.set_result(None)

        app.state.commit = commit
        writer = asyncio.create_task(write())
        yield
        writer.cancel()


@asynccontextmanager
async def _sqlite(url: str) -> AsyncIterator[WriteAll]:
    async with aiosqlite.connect(url.removeprefix("sqlite+aiosqlite:///")) as connection:
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = FULL")
        await connection.execute(_TABLE)

        async def write_all(rows: list[Row]) -> None:
            await connection.executemany("INSERT INTO callbacks VALUES (?, ?, ?)", rows)
            await connection.commit()

        yield write_all


@asynccontextmanager
async def _postgres(url: str) -> AsyncIterator[WriteAll]:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    await connection.execute(_TABLE)

    async def write_all(rows: list[Row]) -> None:
        columns = map(list, zip(*rows, strict=True))
        await connection.execute(
            "INSERT INTO callbacks SELECT * FROM unnest($1::text[], $2::float8[], $3::text[])", *columns
        )

    yield write_all
    await connection.close()
