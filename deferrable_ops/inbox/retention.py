"""What the inbox forgets, by itself: settled waits with their callbacks, after their retention."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from deferrable_ops import settings
from deferrable_ops.exceptions import DeferrableOpsError
from deferrable_ops.inbox.database import Database, Transaction
from deferrable_ops.inbox.schema import callbacks, locks, waits

log = logging.getLogger(__name__)

_EVERY = 3600.0
_ROWS_PER_BATCH = 500
_DAY = 86_400.0


class Retention:
    """Prunes the inbox."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self) -> None:
        """Prune every hour, in one process at a time. Runs until cancelled."""
        while True:
            try:
                if await take_turn(self._database, "retention", _EVERY):
                    await self.prune(settings.wait_retention_days())
            except DeferrableOpsError as error:
                log.warning("The inbox cannot be pruned now: %s", error)
            await asyncio.sleep(_EVERY / 4)

    async def prune(self, days: float) -> int:
        """Delete the waits that were settled more than so many days ago; return how many there were."""
        deleted = 0
        while batch := await self._database.write(lambda transaction: self._prune_batch(transaction, days)):
            deleted += batch
            await asyncio.sleep(0)
        return deleted

    async def _prune_batch(self, transaction: Transaction, days: float) -> int:
        before = transaction.now - days * _DAY
        batch = (
            select(waits.c.id)
            # What was settled by then was made by then, and that is what there is an index on.
            .where(waits.c.created_at < before, waits.c.settled_at < before)
            .where(waits.c.cancel.is_distinct_from("due"))
            .limit(_ROWS_PER_BATCH)
            .with_for_update(skip_locked=True)  # a late callback holds them in another order
        )
        chosen = (await transaction.connection.execute(batch)).scalars().all()
        for table, column in ((callbacks, callbacks.c.wait_id), (waits, waits.c.id)):
            await transaction.connection.execute(delete(table).where(column.in_(chosen)))
        return len(chosen)


async def take_turn(database: Database, name: str, every: float) -> bool:
    """Return whether this process is the one to do a chore that one process does every so many seconds."""

    async def write(transaction: Transaction) -> bool:
        flavour = postgresql if database.dialect == "postgresql" else sqlite
        await transaction.connection.execute(
            flavour.insert(locks).values(name=name, free_at=0.0).on_conflict_do_nothing()
        )
        taken = await transaction.connection.execute(
            update(locks)
            .where(locks.c.name == name, locks.c.free_at <= transaction.now)
            .values(free_at=transaction.now + every)
        )
        return taken.rowcount == 1

    return await database.write(write)
