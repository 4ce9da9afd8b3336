"""Requests: actions for a triggerer, such as stopping a supervisord. Only triggerers reach the machines of
supervisords.

The API server or a user makes a request. A triggerer that reaches the machine claims the request, carries it out and
records the answer. If a triggerer dies, another one takes over its request when the lease has passed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import ColumnElement, Row, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.exceptions import DeferrableOpsError
from deferrable_ops.inbox.daemons import DaemonLocation
from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.schema import requests
from deferrable_ops.inbox.owner import Owner

_LEASE: Final = 60.0
_FIRST_PAUSE: Final = 30.0
_LONGEST_PAUSE: Final = 1800.0


class RequestKind(StrEnum):
    """The action that a request asks for. The target of both kinds of requests is the name of a supervisord."""

    STOP = "stop-supervisord"
    RESTART = "restart-program"


class RequestState(StrEnum):
    """The state of a request, from its creation to its end."""

    WAITING = "waiting"
    RUNNING = "running"
    # An attempt failed, and another attempt will be made.
    RETRYING = "retrying"
    DONE = "done"
    FAILED = "failed"


class RequestLost(DeferrableOpsError):
    """Raised if another process carries out the request now, or if the request is already done."""


@dataclass(frozen=True, slots=True)
class Request:
    """A row of the table `requests`. All times are seconds since the epoch, by the clock of the database.

    :param kind: a value of :class:`RequestKind`, or a kind that a newer release defines.
    :param arguments: a JSON object. ``host`` is the host whose triggerers reach the target, or null if all triggerers
        reach it. ``team`` is the team whose triggerers reach the target. ``until`` is the time after which the request
        is not tried again. Without ``until``, the request is retried until its row is deleted.
    :param actor: the user or the process that made the request.
    :param answer: what the last attempt to carry out the request did, or why this attempt failed; "" if there was no
        attempt.
    """

    id: str
    kind: str
    target: str
    arguments: Mapping[str, Any]
    actor: str
    created_at: float
    done_at: float | None
    state: RequestState
    answer: str
    attempts: int


def arguments_for(daemon: DaemonLocation) -> dict[str, Any]:
    """Return the arguments of a request about a supervisord, which bind the request to the supervisord's DAG run."""
    return {
        "dag_id": daemon.dag_id,
        "run_id": daemon.run_id,
        "host": None if daemon.details.get("is_remote") else daemon.host,
        "team": daemon.details.get("team"),
    }


class Requests:
    """Writes requests to the inbox, and lets only one process at a time carry out a request.

    :param lease: a process that carries out a request claims the request. The claim ends this many seconds after its
        last renewal.
    """

    def __init__(self, database: Database, owner: Owner, *, lease: float = _LEASE) -> None:
        self._database = database
        self._owner = owner
        self._lease = lease

    async def add(
        self,
        kind: RequestKind,
        target: str,
        arguments: Mapping[str, Any],
        actor: str,
        *,
        lasts: float | None = None,
    ) -> Request:
        """Write a request to the inbox, and return the request. If the same request is not done yet, return the
        existing one.

        :param lasts: after this many seconds, the request is not tried again. If `lasts` is None, the request is
            retried until its row is deleted.
        """

        async def write(transaction: Transaction) -> Request:
            connection, now = transaction.connection, transaction.now
            if lasts is None:
                for request in await _read(connection, now, _IS_OPEN):
                    if (request.kind, request.target, request.arguments) == (kind, target, arguments):
                        return request
            until = {} if lasts is None else {"until": now + lasts}
            row = {
                "id": str(uuid4()),
                "kind": kind.value,
                "target": target,
                "arguments": json.dumps({**arguments, **until}),
                "actor": actor,
                "created_at": now,
            }
            await connection.execute(insert(requests).values(**row))
            return (await _read(connection, now, requests.c.id == row["id"]))[0]

        return await self._database.write(write)

    async def get(self, request_id: str) -> Request | None:
        """Return the request with this id. Return None if the request does not exist or was deleted after its retention
        time.
        """
        return next(iter(await self._find(requests.c.id == request_id)), None)

    async def all(self) -> list[Request]:
        """Return all requests, the newest first."""
        return (await self._find())[::-1]

    @asynccontextmanager
    async def claim(self, reaches: Callable[[Request], bool]) -> AsyncIterator[ClaimedRequest | None]:
        """Claim the oldest request that is due, and renew the claim during the ``with`` block.

        :param reaches: a function that returns whether this process can carry out a request.
        :return: the claimed request. The result is None if no request is due, or if this process does not belong to the
            inbox's owner.
        """
        claimed = await self._claim(reaches)
        if claimed is None:
            yield None
            return
        renewal = asyncio.create_task(claimed.keep_renewing(), name="deferrable-ops request lease")
        try:
            yield claimed
        finally:
            renewal.cancel()

    async def _claim(self, reaches: Callable[[Request], bool]) -> ClaimedRequest | None:
        async def probe(connection: AsyncConnection) -> list[Request]:
            now = await self._database.clock(connection)
            found = await _read(connection, now, _is_due(now))
            due = [one for one in found if one.state is not RequestState.FAILED and reaches(one)]
            return due if due and await self._owner.permits(connection, cancel=True) else []

        for request in await self._database.read(probe):
            claimed = ClaimedRequest(request, self._database, self._lease)
            if await claimed.acquire():
                return claimed
        return None

    async def _find(self, *conditions: ColumnElement[bool]) -> list[Request]:
        async def read(connection: AsyncConnection) -> list[Request]:
            return await _read(connection, await self._database.clock(connection), *conditions)

        return await self._database.read(read)


class ClaimedRequest:
    """A request that this process has claimed, so that only this process carries out the request."""

    def __init__(self, request: Request, database: Database, lease: float) -> None:
        self.request = request
        self._database = database
        self._lease = lease
        self._owner = uuid4().hex
        self._mine = (requests.c.id == request.id, requests.c.owner == self._owner, _IS_OPEN)

    async def acquire(self) -> bool:
        """Acquire the claim on the request, and return whether this process holds the claim now."""

        async def write(transaction: Transaction) -> bool:
            due = (requests.c.id == self.request.id, _is_due(transaction.now))
            values = {"owner": self._owner, "lease": transaction.now + self._lease}
            changed = await transaction.connection.execute(update(requests).where(*due).values(**values))
            return changed.rowcount == 1

        return await self._database.write(write)

    async def check(self) -> None:
        """Renew the claim. Await this method immediately before each change that the request causes.

        :raises RequestLost: if another process carries out the request now, or if the request is already done.
        """

        async def write(transaction: Transaction) -> bool:
            mine = update(requests).where(*self._mine).values(lease=transaction.now + self._lease)
            return (await transaction.connection.execute(mine)).rowcount == 1

        if not await self._database.write(write):
            raise RequestLost(
                f"another process carries out the request {self.request.id}, or the request is done"
            )

    async def keep_renewing(self) -> None:
        """Renew the claim on the request at regular intervals, until this coroutine is cancelled."""
        while True:
            await asyncio.sleep(self._lease / 3)
            with suppress(DeferrableOpsError):
                await self.check()

    async def finish(self, text: str, *, failed: bool = False) -> None:
        """Record the final answer: the text that shows the user what was done, or why the request failed.

        :param failed: whether the request failed. A failed request is not tried again.
        """

        async def write(transaction: Transaction) -> None:
            values = {"done_at": transaction.now, "answer": self._answer(text, failed=failed)}
            await transaction.connection.execute(update(requests).where(*self._mine).values(**values))

        await self._database.write(write)

    async def retry_later(self, text: str) -> float | None:
        """Record why an attempt failed. After a pause, any process can try again. The pause doubles with each attempt.

        Return the pause in seconds. If the request is given up before the next attempt, return None.
        """
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0**self.request.attempts)

        async def write(transaction: Transaction) -> bool:
            until = self.request.arguments.get("until")
            given_up = until is not None and transaction.now + pause > until
            values = {
                "owner": None,
                "lease": transaction.now + pause,
                "done_at": transaction.now if given_up else None,
                "answer": self._answer(text, failed=given_up),
            }
            await transaction.connection.execute(update(requests).where(*self._mine).values(**values))
            return given_up

        return None if await self._database.write(write) else pause

    def _answer(self, text: str, *, failed: bool) -> str:
        return json.dumps({"text": text, "failed": failed, "attempts": self.request.attempts + 1})


_IS_OPEN: Final = requests.c.done_at.is_(None)


def _is_due(now: float) -> ColumnElement[bool]:
    return _IS_OPEN & or_(requests.c.lease.is_(None), requests.c.lease <= now)


async def _read(connection: AsyncConnection, now: float, *conditions: ColumnElement[bool]) -> list[Request]:
    query = select(requests).where(*conditions).order_by(requests.c.created_at, requests.c.id)
    return [_request(row, now) for row in await connection.execute(query)]


def _request(row: Row[Any], now: float) -> Request:
    arguments = json.loads(row.arguments)
    answer = {} if row.answer is None else json.loads(row.answer)
    text = answer.get("text", "")
    until = arguments.get("until")
    if row.done_at is not None:
        state = RequestState.FAILED if answer.get("failed") else RequestState.DONE
    elif row.owner is not None and row.lease > now:
        state = RequestState.RUNNING
    elif until is not None and now > until:
        state = RequestState.FAILED
        text = text or "no triggerer that reaches the machine has carried out the request in time"
    else:
        state = RequestState.RETRYING if answer else RequestState.WAITING
    return Request(
        row.id,
        row.kind,
        row.target,
        arguments,
        row.actor,
        row.created_at,
        row.done_at,
        state,
        text,
        answer.get("attempts", 0),
    )
