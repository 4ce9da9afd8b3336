"""The owner of an inbox: the one deployment of Airflow whose processes launch, kill and cancel.

A copy of an Airflow (a staging system, blue/green, a restored metadata database) knows the same waits as the original,
but not what became of them. If it used the inbox of the original, it would end these waits and cancel their work.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.deployment import Deployment, this_process
from deferrable_ops.exceptions import NotOwner
from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.schema import owner
from deferrable_ops.inbox.database.shared_call import SharedCall

log = logging.getLogger(__name__)

_CHECK_INTERVAL = 5.0
_PATIENCE = 30.0
_FIRST_REPEAT, _MAX_REPEAT = 60.0, 3600.0
_ONLY_ROW = 1


@dataclass(frozen=True, slots=True)
class OwnerRow:
    """The owner of an inbox.

    :param deployment: the id of the deployment.
    :param adopted_at: since when, in seconds since the epoch.
    """

    deployment: str
    adopted_at: float


class Owner:
    """Knows whether this process belongs to the inbox's owner.

    An inbox without an owner (a new one, or one of an older release) is adopted by the first deployment that comes.

    :param deployment: the deployment of this process.
    :param check_interval: a process that is not the owner's checks this often, in seconds, whether it has become so.
    """

    def __init__(
        self,
        database: Database,
        *,
        deployment: Deployment = this_process,
        check_interval: float = _CHECK_INTERVAL,
    ) -> None:
        self.deployment = deployment
        self._database = database
        self._check_interval = check_interval
        self._read_shared = SharedCall(self.current)
        # The last row that wait() has read, and when. Thousands of waiting tasks share one query.
        self._seen: tuple[OwnerRow | None, float] = (None, float("-inf"))

    async def current(self) -> OwnerRow | None:
        """Return the owner; None if the inbox has no owner."""
        return await self._database.read(_read)

    async def permits(self, connection: AsyncConnection, *, cancel: bool = False) -> bool:
        """Return whether this process may register and launch. Call it in the transaction that does so.

        :param cancel: whether it may kill and cancel. A triggerer may not while it does not know its deployment.
        """
        return self._problem(await _read(connection), cancel=cancel) is None

    async def require(self, connection: AsyncConnection) -> None:
        """Check that this process may register and launch.

        :raises NotOwner: the inbox belongs to another deployment; the message names the fix.
        """
        if (problem := self._problem(await _read(connection))) is not None:
            raise NotOwner(problem)

    async def problem(self, *, cancel: bool = False) -> str | None:
        """Return why this process may not act, and the fix; None if it may."""
        return self._problem(await self.current(), cancel=cancel)

    async def wait(self, task_log: Any, *, cancel: bool = False) -> None:
        """Return once this process may act. Until then, log the reason at doubling intervals, up to an hour.

        :param task_log: the logger of the task that waits.
        """
        if self.deployment.id is None and not self.deployment.is_awaited:
            await self.deployment.read_elsewhere()
        # The first read of the deployment takes a while when a triggerer starts, which is not worth a line.
        log_at = time.monotonic() + (_PATIENCE if self.deployment.id is None else 0.0)
        repeat = _FIRST_REPEAT
        while (problem := self._problem(await self._shared(), cancel=cancel)) is not None:
            if time.monotonic() >= log_at:
                task_log.warning("Waiting: %s", problem)
                log_at, repeat = time.monotonic() + repeat, min(2 * repeat, _MAX_REPEAT)
            await self.deployment.pause(self._check_interval)

    async def adopt_if_unowned(self) -> None:
        """Make this process's deployment the owner, if the inbox has no owner and the deployment is known."""
        mine = self.deployment.id
        if mine is None or await self.current() is not None:
            return

        async def write(transaction: Transaction) -> bool:
            new = self._database.insert(owner).values(
                id=_ONLY_ROW, deployment=mine, adopted_at=transaction.now
            )
            return (await transaction.connection.execute(new.on_conflict_do_nothing())).rowcount == 1

        if await self._database.write(write):
            log.info("The inbox had no owner; it belongs to this Airflow now (deployment %s)", mine)

    async def adopt(self, deployment: str) -> OwnerRow | None:
        """Make a deployment the owner, and return the owner before it."""

        async def write(transaction: Transaction) -> OwnerRow | None:
            before = await _read(transaction.connection)
            await transaction.connection.execute(delete(owner))
            await transaction.connection.execute(
                insert(owner).values(id=_ONLY_ROW, deployment=deployment, adopted_at=transaction.now)
            )
            return before

        return await self._database.write(write)

    async def _shared(self) -> OwnerRow | None:
        row, seen_at = self._seen
        # Only a row that forbids to act is reused: a caller that may act again comes back if that is not true any more.
        if self._problem(row) is None or time.monotonic() - seen_at >= self._check_interval:
            row = await self._read_shared()
            self._seen = (row, time.monotonic())
        return row

    def _problem(self, row: OwnerRow | None, *, cancel: bool = False) -> str | None:
        mine = self.deployment.id
        if row is None:
            if cancel and mine is None and self.deployment.is_awaited:
                return _UNKNOWN.format("This process cancels nothing until then")
            return None
        if mine is None:
            return _UNKNOWN.format(
                f"The inbox belongs to deployment {row.deployment}, so nothing is launched or cancelled until then"
            )
        if row.deployment != mine:
            return (
                f"the inbox belongs to another Airflow (deployment {row.deployment}), and this Airflow is deployment "
                f"{mine}; it launches and cancels nothing. Give this Airflow an inbox of its own ([deferrable_ops] "
                f"inbox_url), or, if it replaces the other Airflow, run: deferrable-ops inbox adopt {mine}"
            )
        return None


_UNKNOWN = (
    "the deployment of this Airflow is not known. {}. Start an API server of this Airflow, which creates the Airflow "
    "Variable deferrable_ops_deployment, or set [deferrable_ops] deployment. To give the inbox to another deployment, "
    "run: deferrable-ops inbox adopt"
)


async def _read(connection: AsyncConnection) -> OwnerRow | None:
    row = (await connection.execute(select(owner.c.deployment, owner.c.adopted_at))).first()
    return None if row is None else OwnerRow(row.deployment, row.adopted_at)
