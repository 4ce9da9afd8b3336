"""The tables for events and channels.

The other tables of the inbox are in :mod:`deferrable_ops.inbox.database.schema`.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Index, Integer, LargeBinary, Table, Text

from deferrable_ops.inbox.database.schema import metadata

events = Table(
    "deferrable_ops_events",
    metadata,
    # Increases in commit order, over all sources. On SQLite it is the rowid, which every index contains anyway.
    Column("number", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=False),
    Column("source", Text, nullable=False),
    Column("dedupe_key", Text, nullable=False),
    # By the source's clock. If the source has no clock, it is received_at.
    Column("event_time", Double, nullable=False),
    Column("received_at", Double, nullable=False),
    # JSON. A payload that is plain text is stored as a JSON string.
    Column("payload", Text, nullable=False),
    # A JSON object.
    Column("attributes", Text, nullable=False),
)
Index("deferrable_ops_events_source", events.c.source, events.c.number)
Index("deferrable_ops_events_time", events.c.source, events.c.event_time, events.c.number)

event_keys = Table(
    "deferrable_ops_event_keys",
    metadata,
    # No foreign key: a key is kept longer than its event.
    Column("source", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("seen_at", Double, nullable=False),
    # Without a rowid, SQLite writes one B-tree instead of two.
    sqlite_with_rowid=False,
)
Index("deferrable_ops_event_keys_seen", event_keys.c.seen_at)

event_counter = Table(
    "deferrable_ops_event_counter",
    metadata,
    # The table has one row. It stays locked until the commit, so events become visible in the order of their numbers.
    # The value is not indexed, so that Postgres can update the row within its page (a HOT update).
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("value", BigInteger, nullable=False),
    # Some events that were received before this time may already be deleted.
    Column("kept_since", Double, nullable=False),
)

source_positions = Table(
    "deferrable_ops_source_positions",
    metadata,
    Column("source", Text, primary_key=True),
    Column("consumer", Text, primary_key=True),
    # JSON.
    Column("position", Text, nullable=False),
    Column("reached_at", Double, nullable=False),
)

channels = Table(
    "deferrable_ops_channels",
    metadata,
    Column("name", Text, primary_key=True),
    Column("scheme", Text, nullable=False),
    # Encrypted with Airflow's Fernet key; NULL for a scheme without secrets.
    Column("secret", LargeBinary),
    # The previous secret, valid until old_secret_until.
    Column("old_secret", LargeBinary),
    Column("old_secret_until", Double),
    Column("created_at", Double, nullable=False),
    Column("rotated_at", Double),
)
