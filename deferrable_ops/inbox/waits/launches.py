"""Launch claims: a launch claim decides which process may launch the external work of a wait (a job in another system).

The wait's row in the inbox stores which process holds the launch claim, and until when (the lease). Only one process at
a time holds the launch claim; it renews the lease while it launches the work. Any other process waits until the lease
has expired, and then takes over the launch claim and sends the launch request with the same idempotency key. So the
external system gets only one idempotency key for the work. A second launch request is sent only if the response to the
first launch request was not recorded.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import bindparam, select, update

from deferrable_ops.exceptions import DeferrableOpsError
from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.group_commit import GroupCommit
from deferrable_ops.inbox.database.schema import waits
from deferrable_ops.inbox.owner import Owner
from deferrable_ops.inbox.waits.wait import WaitState

log = logging.getLogger(__name__)

LEASE: Final = 30.0
"""Seconds after which a launch claim expires unless the claim is renewed."""

_RENEW_INTERVAL = LEASE / 3
_SEND_MARGIN = LEASE / 6
_ACQUIRE_INTERVAL = 1.0


class ClaimLost(DeferrableOpsError):
    """Raised if this process must not launch the work: the wait was settled, or another process has the launch claim
    now.
    """


class _ClaimResult(Enum):
    GRANTED = "granted"
    HELD_BY_ANOTHER = "held by another"
    # The inbox belongs to another deployment of Airflow.
    NOT_OWNER = "not the owner"
    # The work was launched, or the wait is settled.
    NOT_NEEDED = "not needed"


class Launches:
    """Grants launch claims. A launch claim is the right to launch the external work of one wait.

    :param lease: a launch claim expires this many seconds after its last renewal.
    :param renew_interval: seconds between two renewals of a launch claim.
    :param send_margin: a launch request is sent only if at least this many seconds are left until the lease expires.
    :param acquire_interval: seconds between two attempts to acquire a launch claim that another process holds.
    """

    def __init__(
        self,
        database: Database,
        owner: Owner,
        *,
        lease: float = LEASE,
        renew_interval: float = _RENEW_INTERVAL,
        send_margin: float = _SEND_MARGIN,
        acquire_interval: float = _ACQUIRE_INTERVAL,
    ) -> None:
        self.database = database
        self._owner = owner
        self.lease = lease
        self.renew_interval = renew_interval
        self.send_margin = send_margin
        self._acquire_interval = acquire_interval
        self.acquire: GroupCommit[tuple[str, str], _ClaimResult] = GroupCommit(database, self._acquire_all)
        """Acquire or renew the launch claim of a wait.

        The argument is a pair: the id of the wait, and the random id of the :class:`Claim` object.
        """

    @asynccontextmanager
    async def claim(self, wait_id: str) -> AsyncIterator[Claim | None]:
        """Acquire the launch claim of a wait, and renew it during the ``with`` block.

        If another process holds the launch claim, wait until the claim is free.

        If the inbox belongs to another deployment of Airflow, wait until the inbox belongs to this deployment.

        :return: the launch claim. The result is None if the external work was already launched, or if the wait is
            settled.
        """
        claim = Claim(wait_id, self)
        while (result := await claim.acquire()) in (_ClaimResult.HELD_BY_ANOTHER, _ClaimResult.NOT_OWNER):
            if result is _ClaimResult.NOT_OWNER:
                await self._owner.wait(log)
            else:
                await asyncio.sleep(self._acquire_interval)
        if result is _ClaimResult.NOT_NEEDED:
            yield None
            return
        renewal = asyncio.create_task(claim.keep_renewing(), name="deferrable-ops launch lease")
        try:
            yield claim
        finally:
            renewal.cancel()
            with suppress(DeferrableOpsError):
                await claim.release()

    async def _acquire_all(
        self, transaction: Transaction, requests: list[tuple[str, str]]
    ) -> list[_ClaimResult]:
        if not await self._owner.permits(transaction.connection):
            return [_ClaimResult.NOT_OWNER] * len(requests)
        query = (
            select(waits.c.id, waits.c.state, waits.c.launched_at, waits.c.launch_owner, waits.c.launch_lease)
            .where(waits.c.id.in_({wait_id for wait_id, _ in requests}))
            .order_by(waits.c.id)
            .with_for_update()
        )
        rows = {row.id: row for row in await transaction.connection.execute(query)}
        owners: dict[str, str] = {}
        results = []
        for wait_id, owner in requests:
            row = rows.get(wait_id)
            if row is None or row.state != WaitState.WAITING or row.launched_at is not None:
                results.append(_ClaimResult.NOT_NEEDED)
                continue
            held = wait_id in owners or (row.launch_lease or 0) > transaction.now
            if held and owners.get(wait_id, row.launch_owner) != owner:
                results.append(_ClaimResult.HELD_BY_ANOTHER)
                continue
            owners[wait_id] = owner
            results.append(_ClaimResult.GRANTED)
        if owners:
            await transaction.connection.execute(
                update(waits)
                .where(waits.c.id == bindparam("wait"))
                .values(launch_owner=bindparam("owner"), launch_lease=transaction.now + self.lease),
                [{"wait": wait_id, "owner": owner} for wait_id, owner in owners.items()],
            )
        return results


class Claim:
    """The launch claim of one wait: the right to launch the wait's external work."""

    def __init__(self, wait_id: str, launches: Launches) -> None:
        self._wait_id = wait_id
        self._owner = uuid4().hex
        self._launches = launches
        # By the monotonic clock, which keeps running while the process is stopped.
        self._held_until = float("-inf")

    async def acquire(self) -> _ClaimResult:
        """Acquire the launch claim, or renew the lease if this process already holds the launch claim."""
        requested_at = time.monotonic()
        result = await self._launches.acquire((self._wait_id, self._owner))
        if result is _ClaimResult.GRANTED:
            self._held_until = requested_at + self._launches.lease
        return result

    async def check(self) -> float:
        """Verify that this process holds the launch claim.

        Call this method immediately before sending a launch request.

        :return: the last value of ``time.monotonic()`` at which a launch request may be sent. Compare this value with
            ``time.monotonic()`` when you send the request, because the process may have been paused in between.
        :raises ClaimLost: if this process does not hold the launch claim.
        """
        while True:
            if await self.acquire() is not _ClaimResult.GRANTED:
                raise ClaimLost(
                    f"this process does not launch the work of the wait {self._wait_id}, because the work was "
                    "already launched, the wait was settled, or another process launches the work now"
                )
            until = self._held_until - self._launches.send_margin
            # This is false if the process was stopped during the query.
            if time.monotonic() < until:
                return until

    async def keep_renewing(self) -> None:
        """Renew the lease of the launch claim at regular intervals, until this coroutine is cancelled."""
        while True:
            await asyncio.sleep(self._launches.renew_interval)
            with suppress(DeferrableOpsError):
                await self.acquire()

    async def record(self, answer: Any) -> None:
        """Record the external system's response to the launch request.

        After the response is recorded, no process launches the external work again. A response that is already recorded
        is not replaced.
        """

        async def write(transaction: Transaction) -> None:
            await transaction.connection.execute(
                update(waits)
                .where(waits.c.id == self._wait_id, waits.c.launched_at.is_(None))
                .values(launched_at=transaction.now, launch_answer=json.dumps(answer))
            )

        await self._launches.database.write(write)

    async def release(self) -> None:
        """End the lease of the launch claim.

        If no launch was recorded, another process can then take over the claim at once.
        """

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

        await self._launches.database.write(write)
