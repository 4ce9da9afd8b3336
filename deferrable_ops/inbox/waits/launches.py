"""Who may launch a wait's outside work: a claim on its row, with an owner and a lease.

One process holds the claim at a time and renews it while it works. Another waits for it, and takes it over once it has
expired, under the same idempotency key. So the work never runs under two keys, and is asked for a second time only
where the answer to the first request was not recorded.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from enum import Enum
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import bindparam, select, update

from deferrable_ops.exceptions import DeferrableOpsError
from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.group_commit import GroupCommit
from deferrable_ops.inbox.database.schema import waits
from deferrable_ops.inbox.waits.wait import WaitState

LEASE: Final = 30.0
"""Seconds for which a claim holds unless it is renewed."""

_RENEW_EVERY = LEASE / 3
_MARGIN = LEASE / 6  # what must be left of the lease when something is sent
_ASK_AGAIN_AFTER = 1.0  # while another process holds the claim


class ClaimLost(DeferrableOpsError):
    """The wait was settled, or another process took its launch over: nothing may be sent."""


class _Answer(Enum):
    GRANTED = "granted"
    HELD_BY_ANOTHER = "held by another"
    OVER = "over"  # it was launched, or the wait is settled


class Launches:
    """Grants claims on launches."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ask: GroupCommit[tuple[str, str], _Answer] = GroupCommit(database, self._answer_all)

    @asynccontextmanager
    async def claim(self, wait_id: str) -> AsyncIterator[Claim | None]:
        """Hold the claim on a wait's launch, for which it waits; None when there is nothing left to launch."""
        claim = Claim(wait_id, self._ask, self._database)
        while (answer := await claim.ask()) is _Answer.HELD_BY_ANOTHER:
            await asyncio.sleep(_ASK_AGAIN_AFTER)
        if answer is _Answer.OVER:
            yield None
            return
        renewal = asyncio.create_task(claim.keep(), name="deferrable-ops launch lease")
        try:
            yield claim
        finally:
            renewal.cancel()
            with suppress(DeferrableOpsError):
                await claim.release()

    async def _answer_all(self, transaction: Transaction, asked: list[tuple[str, str]]) -> list[_Answer]:
        query = (
            select(waits.c.id, waits.c.state, waits.c.launched_at, waits.c.launch_owner, waits.c.launch_lease)
            .where(waits.c.id.in_({wait_id for wait_id, _ in asked}))
            .order_by(waits.c.id)
            .with_for_update()
        )
        rows = {row.id: row for row in await transaction.connection.execute(query)}
        owners: dict[str, str] = {}
        answers = []
        for wait_id, owner in asked:
            row = rows.get(wait_id)
            if row is None or row.state != WaitState.WAITING or row.launched_at is not None:
                answers.append(_Answer.OVER)
                continue
            held = wait_id in owners or (row.launch_lease or 0) > transaction.now
            if held and owners.get(wait_id, row.launch_owner) != owner:
                answers.append(_Answer.HELD_BY_ANOTHER)
                continue
            owners[wait_id] = owner
            answers.append(_Answer.GRANTED)
        if owners:
            await transaction.connection.execute(
                update(waits)
                .where(waits.c.id == bindparam("wait"))
                .values(launch_owner=bindparam("owner"), launch_lease=transaction.now + LEASE),
                [{"wait": wait_id, "owner": owner} for wait_id, owner in owners.items()],
            )
        return answers


class Claim:
    """A claim on the launch of one wait, for one owner."""

    def __init__(
        self, wait_id: str, ask: Callable[[tuple[str, str]], Awaitable[_Answer]], database: Database
    ) -> None:
        self._wait_id = wait_id
        self._owner = uuid4().hex
        self._ask = ask
        self._database = database
        self._held_until = float("-inf")  # by the monotonic clock, which goes on while the process is stopped

    async def ask(self) -> _Answer:
        """Ask for the claim, or for it to be renewed."""
        asked_at = time.monotonic()
        answer = await self._ask((self._wait_id, self._owner))
        if answer is _Answer.GRANTED:
            self._held_until = asked_at + LEASE
        return answer

    async def check(self) -> float:
        """Make sure, immediately before something is sent, that this process may send it.

        :return: the ``time.monotonic()`` until which it may. A process that is stopped between this answer and the
            sending has to look at that clock, which goes on meanwhile.
        :raises ClaimLost: it may not.
        """
        while True:
            if await self.ask() is not _Answer.GRANTED:
                raise ClaimLost(f"the launch of wait {self._wait_id} is another process's, or over")
            until = self._held_until - _MARGIN
            if time.monotonic() < until:  # unless the process was stopped while it asked
                return until

    async def keep(self) -> None:
        """Renew the claim until cancelled."""
        while True:
            await asyncio.sleep(_RENEW_EVERY)
            with suppress(DeferrableOpsError):
                await self.ask()

    async def record(self, answer: Any) -> None:
        """Record what the outside service answered: from now on nobody launches again. The first record stays."""

        async def write(transaction: Transaction) -> None:
            await transaction.connection.execute(
                update(waits)
                .where(waits.c.id == self._wait_id, waits.c.launched_at.is_(None))
                .values(launched_at=transaction.now, launch_answer=json.dumps(answer))
            )

        await self._database.write(write)

    async def release(self) -> None:
        """Let another process take over at once what this one did not finish."""

        async def write(transaction: Transaction) -> None:
            await transaction.connection.execute(
                update(waits)
                .where(
                    waits.c.id == self._wait_id,
                    waits.c.launch_owner == self._owner,
                    waits.c.launched_at.is_(None),
                )
                .values(launch_lease=transaction.now)
            )

        await self._database.write(write)
