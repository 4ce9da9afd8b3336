"""The rows behind callbacks. They come in thousands, so the statements of every batch are written by hand.

SQLite takes rows one by one, at no cost between them. Postgres takes each column of the batch as an array,
which costs its server half of what one execution for each row does (measured: 33 µs a callback instead of
70).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, or_, select, tuple_, update

from deferrable_ops.inbox.database import Transaction
from deferrable_ops.inbox.schema import callbacks, waits

_FIND = {
    "sqlite": """
        SELECT id, state, expected, deadline, refused, last_beat FROM deferrable_ops_waits
        WHERE id IN (SELECT value FROM json_each(?))""",
    "postgresql": """
        SELECT id, state, expected, deadline, refused, last_beat FROM deferrable_ops_waits
        WHERE id = ANY($1::text[]) ORDER BY id FOR UPDATE""",
}
_ADD = {
    "sqlite": """
        INSERT INTO deferrable_ops_callbacks
            (wait_id, verb, digest, idempotency_key, source, received_at, status, receipt, payload, accepted)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
    "postgresql": """
        INSERT INTO deferrable_ops_callbacks
            (wait_id, verb, digest, idempotency_key, source, received_at, status, receipt, payload, accepted)
        SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::text[], $5::text[], $6::float8[],
        $7::int[],
                             $8::text[], $9::text[], $10::bool[])""",
}
_SETTLE = {
    "sqlite": """
        UPDATE deferrable_ops_waits
        SET state = ?2, outcome = ?3, settled_at = ?4, last_beat = ?4, version = ?5 WHERE id = ?1""",
    "postgresql": """
        UPDATE deferrable_ops_waits AS waits
        SET state = new.state, outcome = new.outcome,
            settled_at = new.now, last_beat = new.now, version = new.version
        FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::bigint[])
            AS new (id, state, outcome, now, version)
        WHERE waits.id = new.id""",
}

Row = tuple[Any, ...]


async def find_waits(transaction: Transaction, wait_ids: set[str]) -> Sequence[Row]:
    """Return id, state, expected, deadline, refused and last_beat of the waits that exist; lock them."""
    dialect = transaction.connection.dialect.name
    ids = list(wait_ids)
    found = await transaction.connection.exec_driver_sql(
        _FIND[dialect], (ids if dialect == "postgresql" else json.dumps(ids),)
    )
    return [tuple(row) for row in found]


async def find_recorded(
    transaction: Transaction, contents: list[tuple[str, bytes]], keys: list[tuple[str, str]]
) -> Sequence[Row]:
    """Return what is recorded of these contents and keys, the newest first.

    :param contents: pairs of a wait's id and a digest.
    :param keys: pairs of a wait's id and an Idempotency-Key.
    """
    same_content = tuple_(callbacks.c.wait_id, callbacks.c.digest).in_(contents)
    same_key = tuple_(callbacks.c.wait_id, callbacks.c.idempotency_key).in_(keys)
    columns = ("wait_id", "digest", "idempotency_key", "status", "receipt")
    query = (
        select(*(callbacks.c[name] for name in columns))
        .where(or_(same_content, same_key) if keys else same_content)
        .order_by(callbacks.c.id.desc())
    )
    return [tuple(row) for row in await transaction.connection.execute(query)]


async def add(transaction: Transaction, rows: list[Row]) -> None:
    """Record callbacks: wait id, verb, digest, key, source, time, status, receipt, payload, accepted."""
    await _write(transaction, _ADD, rows)


async def settle(transaction: Transaction, rows: list[Row]) -> None:
    """Settle waits: id, state, outcome."""
    await _write(transaction, _SETTLE, [(*row, transaction.now, transaction.version) for row in rows])


async def beat(transaction: Transaction, wait_ids: list[str]) -> None:
    """Move the heartbeat clock of waits."""
    if wait_ids:
        await transaction.connection.execute(
            update(waits)
            .where(waits.c.id == bindparam("wait"))
            .values(last_beat=transaction.now, beat_due=transaction.now + waits.c.heartbeat_timeout),
            [{"wait": wait_id} for wait_id in wait_ids],
        )


async def show_progress(transaction: Transaction, progress: dict[str, str]) -> None:
    """Set the progress that waits show: JSON texts by id."""
    if progress:
        await transaction.connection.execute(
            update(waits)
            .where(waits.c.id == bindparam("wait"))
            .values(progress=bindparam("shown"), version=transaction.version),
            [{"wait": wait_id, "shown": shown} for wait_id, shown in progress.items()],
        )


async def count_refused(transaction: Transaction, refused: dict[str, int]) -> None:
    """Set how many callbacks of each wait were refused."""
    if refused:
        await transaction.connection.execute(
            update(waits).where(waits.c.id == bindparam("wait")).values(refused=bindparam("count")),
            [{"wait": wait_id, "count": count} for wait_id, count in refused.items()],
        )


async def _write(transaction: Transaction, statement: dict[str, str], rows: list[Row]) -> None:
    if not rows:
        return
    dialect = transaction.connection.dialect.name
    columns = tuple(map(list, zip(*rows, strict=True)))
    await transaction.connection.exec_driver_sql(
        statement[dialect], columns if dialect == "postgresql" else rows
    )
