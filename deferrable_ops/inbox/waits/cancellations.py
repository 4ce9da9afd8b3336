"""Cancellations: a process stops the external work of a wait that has ended. After an error, a process tries again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from sqlalchemy import and_, case, false, not_, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.schema import CANCEL_IS_DUE, same_task, waits
from deferrable_ops.inbox.owner import Owner

_LEASE: Final = 60.0
_MAX_TRIES: Final = 10
# After this time, also work whose cancellation failed because of an outage is given up: a week.
_MAX_SECONDS: Final = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Cancellation:
    """A wait whose external work must be stopped.

    :param trigger: the encrypted classpath and kwargs of the trigger whose ``cancel()`` stops the external work.
    """

    wait_id: str
    trigger: bytes


class Cancellations:
    """Lets only one process at a time carry out a cancellation.

    :param lease: for how many seconds a cancellation is assigned to a process. After these seconds, another process can
        get the cancellation.
    """

    def __init__(self, database: Database, owner: Owner, *, lease: float = _LEASE) -> None:
        self._database = database
        self._owner = owner
        self._lease = lease

    async def claim(
        self,
        wait_id: str | None = None,
        *,
        without: Collection[str] = (),
        without_features: Collection[str] = (),
    ) -> Cancellation | None:
        """Assign a due cancellation to the caller for 60 s, and return the cancellation.

        Return None if no cancellation is due, or if this process does not belong to the inbox's owner.

        The cancellation of a wait is not due while a process has the right to launch the wait's external work (the
        launch claim), but has not recorded the launch. This process may be sending the launch request, and a
        cancellation before the external work exists would not stop the work.

        :param wait_id: return only a cancellation of the wait with this id; if None, return a cancellation of any wait.
        :param without: the ids of waits whose cancellations are not returned.
        :param without_features: the features whose cancellations are not returned.
        """

        async def probe(connection: AsyncConnection) -> str | None:
            now = await self._database.clock(connection)
            launching = and_(waits.c.launch_lease.is_not(None), waits.c.launch_lease > now)
            due = select(waits.c.id).where(
                CANCEL_IS_DUE,
                waits.c.cancel_lease <= now,
                or_(waits.c.launched_at.is_not(None), not_(launching)),
            )
            due = due if wait_id is None else due.where(waits.c.id == wait_id)
            due = due.where(waits.c.id.not_in(without)) if without else due
            due = due.where(waits.c.feature.not_in(without_features)) if without_features else due
            found: str | None = (await connection.execute(due.limit(1))).scalar()
            return found if found and await self._owner.permits(connection, cancel=True) else None

        async def write(transaction: Transaction) -> Cancellation | None:
            taken = await transaction.connection.execute(
                update(waits)
                .where(waits.c.id == found, CANCEL_IS_DUE, waits.c.cancel_lease <= transaction.now)
                .values(cancel_lease=transaction.now + self._lease, cancel_tries=waits.c.cancel_tries + 1)
                .returning(waits.c.id, waits.c.trigger)
            )
            row = taken.first()
            return None if row is None else Cancellation(row.id, row.trigger)

        while (found := await self._database.read(probe)) is not None:
            cancellation = await self._database.write(write)
            # If it is None, another process has leased the cancellation in the meantime.
            if cancellation is not None:
                return cancellation
        return None

    async def give_back(self, cancellation: Cancellation) -> None:
        """Let another process carry out a cancellation at once. This does not count as an attempt."""

        async def write(transaction: Transaction) -> None:
            await transaction.connection.execute(
                update(waits)
                .where(waits.c.id == cancellation.wait_id, CANCEL_IS_DUE)
                .values(cancel_lease=transaction.now, cancel_tries=waits.c.cancel_tries - 1)
            )

        await self._database.write(write)

    async def mark_stopped(self, cancellation: Cancellation) -> None:
        """Record in the inbox that a process has stopped the external work of the wait."""

        async def write(transaction: Transaction) -> None:
            await transaction.connection.execute(
                update(waits).where(waits.c.id == cancellation.wait_id).values(cancel="done", trigger=None)
            )

        await self._database.write(write)

    async def mark_failed(self, cancellation: Cancellation, *, counts: bool = True) -> bool:
        """Record that an attempt to stop the external work failed.

        :param counts: whether the attempt counts towards the limit of 10 attempts. Only an attempt that a service
            refused counts.
        :return: whether another attempt will be made. There are no more attempts after 10 attempts that count, or a
            week after the end of the wait.
        """

        async def write(transaction: Transaction) -> bool:
            is_last = waits.c.cancel_tries >= _MAX_TRIES if counts else false()
            given_up = or_(is_last, waits.c.settled_at < transaction.now - _MAX_SECONDS)
            updated = await transaction.connection.execute(
                update(waits)
                .where(waits.c.id == cancellation.wait_id, CANCEL_IS_DUE)
                .values(
                    cancel=case((given_up, "failed"), else_=waits.c.cancel),
                    cancel_tries=waits.c.cancel_tries - (0 if counts else 1),
                )
                .returning(waits.c.cancel)
            )
            return bool(updated.scalar() == "due")

        return await self._database.write(write)

    async def requeue_other_attempts(self, wait_id: str) -> list[str]:
        """Return the wait ids of the other attempts of the same task whose external work is not stopped yet.

        A failed cancellation of another attempt becomes due again, because a new attempt cannot start its external work
        while the external work of another attempt still runs.
        """
        mine = waits.alias("mine")
        others = (
            select(waits.c.id, waits.c.cancel)
            .join(mine, same_task(mine, waits))
            .where(mine.c.id == wait_id, waits.c.id != wait_id, waits.c.cancel.in_(["due", "failed"]))
            .order_by(waits.c.id)
        )

        async def read(connection: AsyncConnection) -> dict[str, str]:
            return {row.id: row.cancel for row in await connection.execute(others)}

        async def write(transaction: Transaction) -> None:
            await transaction.connection.execute(
                update(waits)
                .where(waits.c.id.in_(given_up), waits.c.cancel == "failed", waits.c.trigger.is_not(None))
                .values(cancel="due", cancel_lease=transaction.now, cancel_tries=0)
            )

        left = await self._database.read(read)
        given_up = [other for other, cancel in left.items() if cancel == "failed"]
        if given_up:
            await self._database.write(write)
        return list(left)
