"""SQL statements for batches of events. They are written by hand for speed, as in ``waits/callback_rows.py``."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.inbox.database.database import EVENTS_CHANNEL, Transaction, run_by_driver

_MAX_PAYLOAD_BYTES = 7_900  # Postgres allows 8,000

_TAKE_NUMBERS = {
    "sqlite": "UPDATE deferrable_ops_event_counter SET value = value + ?1 RETURNING value",
    "postgresql": "UPDATE deferrable_ops_event_counter SET value = value + $1 RETURNING value",
}
_FIND_KEYS = {
    "sqlite": """
        SELECT keys.source, keys.key, keys.number, keys.seen_at
        FROM json_each(?1) AS asked CROSS JOIN deferrable_ops_event_keys AS keys
        WHERE keys.source = json_extract(asked.value, '$[0]') AND keys.key = json_extract(asked.value, '$[1]')""",
    "postgresql": """
        SELECT keys.source, keys.key, keys.number, keys.seen_at
        FROM unnest($1::text[], $2::text[]) AS asked (source, key)
        JOIN deferrable_ops_event_keys AS keys ON keys.source = asked.source AND keys.key = asked.key""",
}
_ADD_SQLITE = """
    INSERT INTO deferrable_ops_events
        (number, source, dedupe_key, event_time, received_at, payload, attributes)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
        coalesce(json_extract(value, '$[3]'), ?2), ?2, json_extract(value, '$[4]'), json_extract(value, '$[5]')
    FROM json_each(?1) ORDER BY key"""
# On conflict, overwrite the existing key: it detected duplicates for a limited time, and that time is over.
_ADD_KEYS_SQLITE = """
    INSERT INTO deferrable_ops_event_keys (source, key, number, seen_at)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'), ?2
    FROM json_each(?1) WHERE true
    ON CONFLICT (source, key) DO UPDATE SET number = excluded.number, seen_at = excluded.seen_at"""
_ADD_POSTGRES = """
    WITH added AS (
        INSERT INTO deferrable_ops_events
            (number, source, dedupe_key, event_time, received_at, payload, attributes)
        SELECT number, source, dedupe_key, coalesce(event_time, $10), $10, payload, attributes
        FROM unnest($1::bigint[], $2::text[], $3::text[], $4::float8[], $5::text[], $6::text[])
        AS new (number, source, dedupe_key, event_time, payload, attributes)),
    marked AS (
        INSERT INTO deferrable_ops_event_keys (source, key, number, seen_at)
        SELECT source, key, number, $10
        FROM unnest($7::text[], $8::text[], $9::bigint[]) AS new (source, key, number)
        ON CONFLICT (source, key) DO UPDATE SET number = excluded.number, seen_at = excluded.seen_at)
    SELECT pg_notify($11, payload) FROM unnest($12::text[]) AS payload"""
# Rows are ordered, so that two triggerers cannot deadlock when they save positions of the same waits.
_SET_POSITIONS = {
    "sqlite": """
        INSERT INTO deferrable_ops_source_positions (source, consumer, position, reached_at)
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'), ?2
        FROM json_each(?1) WHERE true ORDER BY 1, 2
        ON CONFLICT (source, consumer)
        DO UPDATE SET position = excluded.position, reached_at = excluded.reached_at""",
    "postgresql": """
        INSERT INTO deferrable_ops_source_positions (source, consumer, position, reached_at)
        SELECT source, consumer, position, $4
        FROM unnest($1::text[], $2::text[], $3::text[]) AS new (source, consumer, position) ORDER BY 1, 2
        ON CONFLICT (source, consumer)
        DO UPDATE SET position = excluded.position, reached_at = excluded.reached_at""",
}
# One index range per source is read. Therefore events of other sources, which lie in between, cost nothing.
_READ = {
    "sqlite": """
        SELECT number, source, dedupe_key, event_time, received_at, payload, attributes
        FROM deferrable_ops_events WHERE number IN (
            SELECT found.number FROM json_each(:sources) AS asked CROSS JOIN deferrable_ops_events AS found
            WHERE found.number IN (
                SELECT number FROM deferrable_ops_events
                WHERE source = asked.value AND number > :after AND number <= :upto AND event_time >= :since
                ORDER BY number LIMIT :limit)
            ORDER BY found.number LIMIT :limit)
        ORDER BY number""",
    "postgresql": """
        SELECT found.*
        FROM unnest(CAST(:sources AS text[])) AS asked (source) CROSS JOIN LATERAL (
            SELECT number, events.source, dedupe_key, event_time, received_at, payload, attributes
            FROM deferrable_ops_events AS events
            WHERE events.source = asked.source AND number > :after AND number <= :upto AND event_time >= :since
            ORDER BY number LIMIT :limit) AS found
        ORDER BY found.number LIMIT :limit""",
}
# With "number + 0", the planners use the index on the event times. With "number", they could scan the numbers upwards
# until an event is recent enough, which is slower.
_FIRST_SINCE = {
    "sqlite": """
        SELECT min(found.number + 0) FROM json_each(:sources) AS asked CROSS JOIN deferrable_ops_events AS found
        WHERE found.source = asked.value AND found.event_time >= :since""",
    "postgresql": """
        SELECT min(found.first) FROM unnest(CAST(:sources AS text[])) AS asked (source) CROSS JOIN LATERAL (
            SELECT min(number + 0) AS first FROM deferrable_ops_events AS events
            WHERE events.source = asked.source AND event_time >= :since) AS found""",
}

Row = Sequence[Any]


async def take_numbers(transaction: Transaction, count: int) -> int:
    """Reserve `count` event numbers, and return the last of these numbers.

    The counter row stays locked until the commit, so events are committed in the order of their numbers.
    """
    statement = _TAKE_NUMBERS[transaction.connection.dialect.name]
    rows = await run_by_driver(transaction.connection, statement, count)
    return int(rows[0][0])


async def find_keys(transaction: Transaction, asked: Sequence[tuple[str, str]]) -> Sequence[Row]:
    """Return the rows that the table of dedupe keys contains for the given pairs of a source and a dedupe key.

    :param asked: pairs of a source and a dedupe key.
    :return: for each stored pair, a row with source, key, event number and time (Unix time) at which the key was seen.
    """
    connection = transaction.connection
    if connection.dialect.name == "sqlite":
        return await run_by_driver(connection, _FIND_KEYS["sqlite"], json.dumps(asked))
    return await run_by_driver(connection, _FIND_KEYS["postgresql"], *_columns(asked, 2))


async def add(
    transaction: Transaction, added: Sequence[Row], keys: Sequence[Row], notify: Collection[str]
) -> None:
    """Insert events and their dedupe keys.

    :param added: the rows to insert into the events table. Each row has number, source, dedupe key, event time or None,
        payload, attributes.
    :param keys: the rows to insert into the table of dedupe keys. Each row has source, key, event number.
    :param notify: the names of the sources with new events. A Postgres notification sends these names to other
        processes. SQLite does not use `notify`.
    """
    connection, now = transaction.connection, transaction.now
    if connection.dialect.name == "sqlite":
        await run_by_driver(connection, _ADD_SQLITE, json.dumps(added), now)
        await run_by_driver(connection, _ADD_KEYS_SQLITE, json.dumps(keys), now)
        return
    payloads = sorted({source if len(source.encode()) <= _MAX_PAYLOAD_BYTES else "" for source in notify})
    columns = (*_columns(added, 6), *_columns(keys, 3))
    await run_by_driver(connection, _ADD_POSTGRES, *columns, now, EVENTS_CHANNEL, payloads)


async def set_positions(transaction: Transaction, positions: Sequence[Row]) -> None:
    """Store the positions up to which consumers have read sources.

    :param positions: rows, each with source, consumer, position; at most one row for each pair of source and consumer.
    """
    connection, now = transaction.connection, transaction.now
    if connection.dialect.name == "sqlite":
        await run_by_driver(connection, _SET_POSITIONS["sqlite"], json.dumps(positions), now)
    else:
        await run_by_driver(connection, _SET_POSITIONS["postgresql"], *_columns(positions, 3), now)


async def read(
    connection: AsyncConnection, sources: Collection[str], *, after: int, upto: int, since: float, limit: int
) -> Sequence[Row]:
    """Return at most `limit` events of the given sources, in the order of their numbers, which is the commit order.

    :param after: return only events with a higher number than this.
    :param upto: return only events with this number or a lower one.
    :param since: return only events with this event time (Unix time) or a later one.
    """
    bounds = {"after": after, "upto": upto, "since": since, "limit": limit}
    query = sa.text(_READ[connection.dialect.name])
    return (await connection.execute(query, {"sources": _parameter(connection, sources), **bounds})).all()


async def first_since(connection: AsyncConnection, sources: Collection[str], since: float) -> int | None:
    """Return the lowest number of an event from the given sources with an event time of `since` or later.

    Return None if there is no such event.
    """
    query = sa.text(_FIRST_SINCE[connection.dialect.name])
    bounds = {"sources": _parameter(connection, sources), "since": since}
    first: int | None = (await connection.execute(query, bounds)).scalar_one()
    return first


def _parameter(connection: AsyncConnection, sources: Collection[str]) -> str | list[str]:
    return json.dumps(sorted(sources)) if connection.dialect.name == "sqlite" else sorted(sources)


def _columns(rows: Sequence[Row], count: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(count)]
