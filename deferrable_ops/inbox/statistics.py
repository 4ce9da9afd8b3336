"""Counts the inbox's rows, and measures the size of its tables."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.inbox.database.database import Database
from deferrable_ops.inbox.database.schema import CANCEL_IS_DUE, IS_WAITING, callbacks, keys, waits
from deferrable_ops.inbox.events.event_schema import channels, events

_BYTES = {
    "sqlite": "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
    "postgresql": "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class "
    "WHERE relname LIKE 'deferrable\\_ops\\_%' AND relkind = 'r' AND pg_table_is_visible(oid)",
}


@dataclass(frozen=True, slots=True)
class Statistics:
    """The numbers of rows in the inbox, and the size of the inbox.

    :param waits: a dict from each state to the number of waits in this state.
    :param oldest_waiting: the time when the oldest wait that has not ended was registered, in seconds since the epoch.
        `oldest_waiting` is None if every wait has ended.
    :param cancellations_due: the number of waits whose external work is still to be cancelled.
    :param bytes: the size of the inbox's tables with their indexes, in bytes.
    """

    waits: dict[str, int]
    oldest_waiting: float | None
    cancellations_due: int
    callbacks: int
    events: int
    channels: int
    keys: int
    bytes: int


async def read_statistics(database: Database) -> Statistics:
    """Count the rows of the inbox's tables. This function takes long for a large inbox, because it reads all rows."""

    async def read(connection: AsyncConnection) -> Statistics:
        async def count(query: object) -> int:
            return int((await connection.execute(query)).scalar_one())  # type: ignore[call-overload]

        by_state = select(waits.c.state, func.count()).group_by(waits.c.state).order_by(waits.c.state)
        oldest = select(func.min(waits.c.created_at)).where(IS_WAITING)
        return Statistics(
            waits={row[0]: row[1] for row in await connection.execute(by_state)},
            oldest_waiting=(await connection.execute(oldest)).scalar_one(),
            cancellations_due=await count(select(func.count()).select_from(waits).where(CANCEL_IS_DUE)),
            callbacks=await count(select(func.count()).select_from(callbacks)),
            events=await count(select(func.count()).select_from(events)),
            channels=await count(select(func.count()).select_from(channels)),
            keys=await count(select(func.count()).select_from(keys)),
            bytes=await count(text(_BYTES[database.dialect])),
        )

    return await database.read(read)
