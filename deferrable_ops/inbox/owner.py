"""The owner of an inbox: the one deployment of Airflow whose processes launch and cancel external work.

A copy of an Airflow (a staging system, blue/green, a restored metadata database) has the same deferred tasks as the
original, but does not know how these tasks ended. If the copy used the inbox of the original, the copy would end the
waits of the original and cancel their external work.
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
    """The row of the inbox that records its owner.

    :param deployment: the id of the deployment of Airflow that is the owner.
    :param adopted_at: the time when this deployment became the owner, in seconds since the epoch.
    """

    deployment: str
    adopted_at: float


class Owner:
    """Finds out whether this process belongs to the deployment of Airflow that owns the inbox.

    A new inbox, and an inbox of an older release, has no owner. The first deployment that uses such an inbox becomes
    its owner.

    :param deployment: the deployment of Airflow to which this process belongs.
    :param check_interval: seconds between two reads of the owner while :meth:`wait` waits.
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
        """Return the owner, or None if the inbox has no owner."""
        return await self._database.read(_read)

    async def permits(self, connection: AsyncConnection, *, cancel: bool = False) -> bool:
        """Return whether this process may register waits and launch external work.

        Call this method in the same transaction as the registration or launch.

        :param cancel: if True, return whether this process may, in addition, settle the waits of killed tasks and
            cancel external work. A triggerer may not do so while it does not know the id of its deployment.
        """
        return self._problem(await _read(connection), cancel=cancel) is None

    async def require(self, connection: AsyncConnection) -> None:
        """Check that this process may register waits and launch external work.

        :raises NotOwner: if the inbox belongs to another deployment, or if this process does not know the id of its
            deployment. The error message names the fix.
        """
        if (problem := self._problem(await _read(connection))) is not None:
            raise NotOwner(problem)

    async def problem(self, *, cancel: bool = False) -> str | None:
        """Return the reason why this process may not launch external work, with the fix. Return None if this process
        may launch external work.

        :param cancel: if True, return also why this process may not cancel external work.
        """
        return self._problem(await self.current(), cancel=cancel)

    async def wait(self, task_log: Any, *, cancel: bool = False) -> None:
        """Wait until this process may launch external work.

        While this method waits, it repeats the reason in the task's log. The interval between two log lines doubles
        each time, up to an hour.

        :param task_log: the logger of the waiting task. The reason for waiting is written to this log.
        :param cancel: if True, wait until this process may also cancel external work.
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
        """If the inbox has no owner, make the deployment of this process the owner.

        Do nothing while this process does not know the id of its deployment.
        """
        mine = self.deployment.id
        if mine is None or await self.current() is not None:
            return

        async def write(transaction: Transaction) -> bool:
            new = self._database.insert(owner).values(
                id=_ONLY_ROW, deployment=mine, adopted_at=transaction.now
            )
            return (await transaction.connection.execute(new.on_conflict_do_nothing())).rowcount == 1

        if await self._database.write(write):
            log.info("The inbox had no owner, and now belongs to this Airflow (deployment %s)", mine)

    async def adopt(self, deployment: str) -> OwnerRow | None:
        """Make a deployment the inbox's owner. Return the previous owner, or None if the inbox had no owner before."""

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
                return _UNKNOWN.format("This process cancels no external work until the deployment is known")
            return None
        if mine is None:
            return _UNKNOWN.format(
                f"The inbox belongs to deployment {row.deployment}, and this process launches and cancels no "
                "external work until this Airflow's deployment is known"
            )
        if row.deployment != mine:
            return (
                f"the inbox belongs to another Airflow (deployment {row.deployment}), so this Airflow (deployment "
                f"{mine}) launches and cancels no external work. Give this Airflow an inbox of its own "
                "([deferrable_ops] inbox_url). If this Airflow replaces the other Airflow, keep the inbox and run: "
                f"deferrable-ops inbox adopt {mine}"
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
