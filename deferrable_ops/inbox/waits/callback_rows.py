"""SQL statements for batches of callbacks.

Because thousands of callbacks can arrive at once, the statements are written by hand for speed, and each statement
handles a whole batch. SQLite receives the batch as one JSON string, because SQLite's driver acquires and releases
Python's GIL for every row, which is slow while the event loop is busy. Postgres receives one array per column, because
executing a statement once per row takes twice as much server time (measured: 70 µs per callback instead of 33 µs).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, or_, select, tuple_, update

from deferrable_ops.inbox.database.database import Transaction, run_by_driver
from deferrable_ops.inbox.database.schema import callbacks, waits

_FIND = {
    "sqlite": """
        SELECT json_group_array(json_array(
            id, state, expected, deadline <= ?2, refused, last_beat IS NOT NULL OR refused > 0))
        FROM deferrable_ops_waits WHERE id IN (SELECT value FROM json_each(?1))""",
    "postgresql": """
        SELECT id, state, expected, deadline <= $2, refused, last_beat IS NOT NULL OR refused > 0
        FROM deferrable_ops_waits WHERE id = ANY($1::text[]) ORDER BY id FOR UPDATE""",
}
_ADD_SQLITE = """
    INSERT INTO deferrable_ops_callbacks
        (digest, received_at, number, wait_id, verb, idempotency_key, source, status, receipt, payload, accepted)
    SELECT substr(?2, 32 * key + 1, 32), ?3, ?4 + key,
        json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
        json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'),
        json_extract(value, '$[6]'), json_extract(value, '$[7]')
    FROM json_each(?1) ORDER BY key"""
_SETTLE_SQLITE = """
    UPDATE deferrable_ops_waits
    SET state = json_extract(new.value, '$[1]'), outcome = json_extract(new.value, '$[2]'),
        settled_at = ?2, last_beat = ?2, version = ?3
    FROM json_each(?1) AS new WHERE deferrable_ops_waits.id = json_extract(new.value, '$[0]')"""
_ADD_AND_SETTLE_POSTGRES = """
    WITH settled AS (
        UPDATE deferrable_ops_waits AS waits
        SET state = new.state, outcome = new.outcome, settled_at = $13, last_beat = $13, version = $14
        FROM unnest($10::text[], $11::text[], $12::text[]) AS new (id, state, outcome)
        WHERE waits.id = new.id)
    INSERT INTO deferrable_ops_callbacks
        (digest, received_at, number, wait_id, verb, idempotency_key, source, status, receipt, payload, accepted)
    SELECT digest, $13, $15 + position, wait_id, verb, idempotency_key, source, status, receipt, payload, accepted
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::int[], $6::text[], $7::text[], $8::bool[],
        $9::bytea[]) WITH ORDINALITY
    AS new (wait_id, verb, idempotency_key, source, status, receipt, payload, accepted, digest, position)"""
_ADDED_COLUMNS, _SETTLED_COLUMNS = 8, 3
# Must exceed the number of callbacks in a batch.
_NUMBERS_PER_TRANSACTION = 1_000

Row = tuple[Any, ...]


async def find_waits(transaction: Transaction, wait_ids: set[str]) -> Sequence[Row]:
    """Lock the rows of the given waits in the table `waits`, and return some columns of these rows.

    :return: for each wait that exists, a row with id, state, expected, whether the deadline has passed, the number of
        refused callbacks, and whether the inbox has earlier callbacks of the wait.
    """
    ids = list(wait_ids)
    if _is_postgres(transaction):
        return await run_by_driver(transaction.connection, _FIND["postgresql"], ids, transaction.now)
    found = await run_by_driver(transaction.connection, _FIND["sqlite"], json.dumps(ids), transaction.now)
    rows: list[Row] = json.loads(found[0][0])
    return rows


async def find_recorded(
    transaction: Transaction, contents: list[tuple[str, bytes]], keys: list[tuple[str, str]]
) -> Sequence[Row]:
    """Return the recorded callbacks that have one of the given contents or Idempotency-Keys, newest first.

    Each returned row contains wait id, digest, Idempotency-Key, status, receipt.

    :param contents: the contents, as pairs of a wait id and a callback's digest.
    :param keys: the Idempotency-Keys, as pairs of a wait id and an Idempotency-Key.
    """
    same_content = tuple_(callbacks.c.wait_id, callbacks.c.digest).in_(contents)
    same_key = tuple_(callbacks.c.wait_id, callbacks.c.idempotency_key).in_(keys)
    columns = ("wait_id", "digest", "idempotency_key", "status", "receipt")
    query = (
        select(*(callbacks.c[name] for name in columns))
        .where(or_(same_content, same_key) if keys else same_content)
        .order_by(callbacks.c.number.desc())
    )
    return [tuple(row) for row in await transaction.connection.execute(query)]


async def add_and_settle(
    transaction: Transaction, added: list[Row], digests: list[bytes], settled: list[Row]
) -> None:
    """Record callbacks and settle waits.

    :param added: the callbacks to record, as rows with wait id, verb, Idempotency-Key, source, status, receipt,
        payload, accepted.
    :param digests: the digests of the callbacks in `added`, in the same order.
    :param settled: the waits to settle, as rows with wait id, state, outcome.
    """
    if not added:
        # Without a callback to record, there is no wait to settle.
        return
    connection, now, version = transaction.connection, transaction.now, transaction.version
    number = version * _NUMBERS_PER_TRANSACTION
    if _is_postgres(transaction):
        columns = (*_columns(added, _ADDED_COLUMNS), digests, *_columns(settled, _SETTLED_COLUMNS))
        await run_by_driver(connection, _ADD_AND_SETTLE_POSTGRES, *columns, now, version, number)
        return
    await run_by_driver(connection, _ADD_SQLITE, json.dumps(added), b"".join(digests), now, number)
    if settled:
        await run_by_driver(connection, _SETTLE_SQLITE, json.dumps(settled), now, version)


async def beat(transaction: Transaction, wait_ids: list[str]) -> None:
    """Record that a heartbeat arrived for each of the given waits, and restart the waits' heartbeat timeouts."""
    if wait_ids:
        await transaction.connection.execute(
            update(waits)
            .where(waits.c.id == bindparam("wait"))
            .values(last_beat=transaction.now, beat_due=transaction.now + waits.c.heartbeat_timeout),
            [{"wait": wait_id} for wait_id in wait_ids],
        )


async def set_progress(transaction: Transaction, progress: dict[str, str]) -> None:
    """Set the progress of waits.

    :param progress: a dict from the wait id to the progress as a JSON string.
    """
    if progress:
        await transaction.connection.execute(
            update(waits)
            .where(waits.c.id == bindparam("wait"))
            .values(progress=bindparam("shown"), version=transaction.version),
            [{"wait": wait_id, "shown": shown} for wait_id, shown in progress.items()],
        )


async def set_refused(transaction: Transaction, refused: dict[str, int]) -> None:
    """Store for each of the given waits how many of its callbacks were refused.

    :param refused: a dict from the wait id to the number of refused callbacks.
    """
    if refused:
        await transaction.connection.execute(
            update(waits).where(waits.c.id == bindparam("wait")).values(refused=bindparam("count")),
            [{"wait": wait_id, "count": count} for wait_id, count in refused.items()],
        )


def _is_postgres(transaction: Transaction) -> bool:
    return transaction.connection.dialect.name == "postgresql"


def _columns(rows: list[Row], count: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(count)]
