"""The inbox's tables for events and channels, beside those of :mod:`deferrable_ops.inbox.database.schema`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Index, Integer, LargeBinary, Table, Text

from deferrable_ops.inbox.database.schema import metadata

events = Table(
    "deferrable_ops_events",
    metadata,
    # The order of the commits, over all sources. In SQLite it is the rowid, which every index holds already.
    Column("number", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=False),
    Column("source", Text, nullable=False),
    Column("dedupe_key", Text, nullable=False),
    Column("event_time", Double, nullable=False),  # by the source's clock, where it has one
    Column("received_at", Double, nullable=False),
    Column("payload", Text, nullable=False),  # JSON; text that is none is a JSON string
    Column("attributes", Text, nullable=False),  # a JSON object
)
Index("deferrable_ops_events_source", events.c.source, events.c.number)
Index("deferrable_ops_events_time", events.c.source, events.c.event_time, events.c.number)

event_keys = Table(
    "deferrable_ops_event_keys",
    metadata,
    # No foreign key: a key outlives its event.
    Column("source", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("seen_at", Double, nullable=False),
    sqlite_with_rowid=False,  # one tree of pages to write, not two
)
Index("deferrable_ops_event_keys_seen", event_keys.c.seen_at)

event_counter = Table(
    "deferrable_ops_event_counter",
    metadata,
    # One row. Its lock, held until the commit, is what makes numbers visible in their order. The number is no key:
    # Postgres then changes the row in its place.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("value", BigInteger, nullable=False),
    Column("kept_since", Double, nullable=False),  # what was received before it is forgotten
)

source_positions = Table(
    "deferrable_ops_source_positions",
    metadata,
    Column("source", Text, primary_key=True),
    Column("consumer", Text, primary_key=True),
    Column("position", Text, nullable=False),  # JSON
    Column("reached_at", Double, nullable=False),
)

channels = Table(
    "deferrable_ops_channels",
    metadata,
    Column("name", Text, primary_key=True),
    Column("scheme", Text, nullable=False),
    # As Airflow encrypts its connections; none for a scheme without secrets.
    Column("secret", LargeBinary),
    Column("old_secret", LargeBinary),  # valid as well, until then
    Column("old_secret_until", Double),
    Column("created_at", Double, nullable=False),
    Column("rotated_at", Double),
)
