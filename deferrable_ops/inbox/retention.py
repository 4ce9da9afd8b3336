"""Deletes old rows of the inbox.

Deletes old waits with their callbacks, old events and dedupe keys, source positions of ended waits, old requests, and
the rows of hosts and outages that no process updates.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sqlalchemy import Table, delete, exists, select, tuple_, update

from deferrable_ops import settings
from deferrable_ops.exceptions import DeferrableOpsError
from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.schema import callbacks, hosts, outages, requests, waits
from deferrable_ops.inbox.events.event_schema import event_counter, event_keys, events, source_positions
from deferrable_ops.inbox.waits.wait import WaitState

log = logging.getLogger(__name__)

_INTERVAL = 3600.0
_ROWS_PER_BATCH = 500
_DAY = 86_400.0
_KEY_DAYS_AFTER_EVENT = 30.0
_HOST_DAYS = 7.0
_OUTAGE_DAYS = 1.0
_REQUEST_DAYS = 14.0


class Retention:
    """Deletes the rows of the inbox that are older than their retention time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self) -> None:
        """Delete old rows of the inbox every hour, in only one process at a time. Runs until cancelled."""
        while True:
            try:
                if await self._database.try_lock("retention", _INTERVAL):
                    await self.prune(settings.wait_retention_days())
                    await self.prune_events(settings.event_retention_days())
                    await self.prune_positions()
                    await self.prune_hosts(_HOST_DAYS)
                    await self.prune_outages()
                    await self.prune_requests(_REQUEST_DAYS)
            except DeferrableOpsError as error:
                log.warning("Cannot delete old rows of the inbox; retrying later: %s", error)
            await asyncio.sleep(_INTERVAL / 4)

    async def prune(self, days: float) -> int:
        """Delete the waits that were settled more than `days` days ago, and return the number of deleted waits."""
        before = await self._database.now() - days * _DAY
        return await self._in_batches(_delete_waits, before)

    async def prune_events(self, days: float) -> int:
        """Delete the events that were received more than `days` days ago.

        Delete each dedupe key 30 days after its event.

        :return: the number of deleted events.
        """
        before = await self._database.now() - days * _DAY
        deleted = 0
        if await self._database.write(lambda transaction: _raise_kept_since(transaction, before)):
            deleted = await self._in_batches(_delete_events, before)
        await self._in_batches(_delete_keys, before - _KEY_DAYS_AFTER_EVENT * _DAY)
        return deleted

    async def prune_positions(self) -> int:
        """Delete the source positions of waits that have ended, and return the number of deleted positions."""
        return await self._in_batches(_delete_positions)

    async def prune_hosts(self, days: float) -> int:
        """Delete the rows of hosts that were last updated more than `days` days ago, and return the number of rows."""
        return await self._delete_unseen(hosts, days)

    async def prune_outages(self) -> int:
        """Delete the rows of outages that no process has updated for a day, and return the number of deleted rows."""
        return await self._delete_unseen(outages, _OUTAGE_DAYS)

    async def prune_requests(self, days: float) -> int:
        """Delete the requests that were made more than `days` days ago, and return the number of deleted requests."""

        async def write(transaction: Transaction) -> int:
            old = delete(requests).where(requests.c.created_at < transaction.now - days * _DAY)
            return (await transaction.connection.execute(old)).rowcount

        return await self._database.write(write)

    async def _delete_unseen(self, table: Table, days: float) -> int:
        async def write(transaction: Transaction) -> int:
            old = delete(table).where(table.c.seen_at < transaction.now - days * _DAY)
            return (await transaction.connection.execute(old)).rowcount

        return await self._database.write(write)

    async def _in_batches(self, delete_batch: Callable[..., Awaitable[int]], *arguments: float) -> int:
        deleted = 0
        while batch := await self._database.write(lambda transaction: delete_batch(transaction, *arguments)):
            deleted += batch
            await asyncio.sleep(0)
        return deleted


async def _delete_waits(transaction: Transaction, before: float) -> int:
    batch = (
        select(waits.c.id)
        # The condition on settled_at would suffice. The one on created_at is added because created_at has an index.
        .where(waits.c.created_at < before, waits.c.settled_at < before)
        .where(waits.c.cancel.is_distinct_from("due"))
        .limit(_ROWS_PER_BATCH)
        # Skip rows that late callbacks have locked. Callbacks lock rows in another order, so waiting could deadlock.
        .with_for_update(skip_locked=True)
    )
    chosen = (await transaction.connection.execute(batch)).scalars().all()
    for table, column in ((callbacks, callbacks.c.wait_id), (waits, waits.c.id)):
        await transaction.connection.execute(delete(table).where(column.in_(chosen)))
    return len(chosen)


async def _raise_kept_since(transaction: Transaction, before: float) -> bool:
    """Record that events before a time may be missing, because the caller deletes these events next.

    :return: whether the inbox contains events before this time.
    """
    oldest = select(events.c.received_at).order_by(events.c.number).limit(1)
    received_at = (await transaction.connection.execute(oldest)).scalar()
    if received_at is None or received_at >= before:
        return False
    earlier = update(event_counter).where(event_counter.c.kept_since < before)
    await transaction.connection.execute(earlier.values(kept_since=before))
    return True


async def _delete_events(transaction: Transaction, before: float) -> int:
    # Numbers increase almost in the order of receipt, so the oldest events are found without another index.
    lowest = (
        select(events.c.number, events.c.received_at)
        .order_by(events.c.number)
        .limit(_ROWS_PER_BATCH)
        .with_for_update(skip_locked=True)
    )
    rows = (await transaction.connection.execute(lowest)).all()
    chosen = [number for number, received_at in rows if received_at < before]
    await transaction.connection.execute(delete(events).where(events.c.number.in_(chosen)))
    return len(chosen)


async def _delete_keys(transaction: Transaction, before: float) -> int:
    key = (event_keys.c.source, event_keys.c.key)
    batch = select(*key).where(event_keys.c.seen_at < before).limit(_ROWS_PER_BATCH)
    rows = (await transaction.connection.execute(batch.with_for_update(skip_locked=True))).all()
    if rows:
        chosen = [tuple(row) for row in rows]
        await transaction.connection.execute(delete(event_keys).where(tuple_(*key).in_(chosen)))
    return len(rows)


async def _delete_positions(transaction: Transaction) -> int:
    position = (source_positions.c.source, source_positions.c.consumer)
    needed = exists().where(waits.c.id == source_positions.c.consumer, waits.c.state == WaitState.WAITING)
    batch = select(*position).where(~needed).limit(_ROWS_PER_BATCH)
    # Do not wait for a transaction that is still setting a position.
    rows = (await transaction.connection.execute(batch.with_for_update(skip_locked=True))).all()
    if rows:
        chosen = [tuple(row) for row in rows]
        await transaction.connection.execute(delete(source_positions).where(tuple_(*position).in_(chosen)))
    return len(rows)
