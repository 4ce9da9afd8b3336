"""The inbox's tables. The times in the tables are seconds since the epoch, by the clock of the database."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Double,
    FromClause,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    and_,
    literal_column,
    or_,
    text,
)

HEAD: Final = "0005"
"""The number of the newest migration. If the inbox's tables have this version, Alembic is not loaded."""

metadata = MetaData()

alembic_version = Table(
    "deferrable_ops_alembic_version",
    metadata,
    Column("version_num", Text, primary_key=True),
    # The HEAD of the oldest release that can use these tables.
    Column("oldest_reader", Text),
)

waits = Table(
    "deferrable_ops_waits",
    metadata,
    Column("id", Text, primary_key=True),
    # The attempt of the task. The newest attempt owns the task.
    Column("ti_id", Text, nullable=False),
    Column("try_number", Integer, nullable=False),
    Column("dag_id", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("task_id", Text, nullable=False),
    Column("map_index", Integer, nullable=False),
    Column("logical_date", Double),
    Column("feature", Text, nullable=False),
    # State and result.
    Column("state", Text, nullable=False),
    Column("expected", Text, nullable=False, server_default="{}"),
    Column("progress", Text),
    Column("outcome", Text),
    Column("created_at", Double, nullable=False),
    Column("settled_at", Double),
    # Deadline and heartbeats.
    Column("deadline", Double, nullable=False),
    Column("heartbeat_timeout", Double),
    Column("last_beat", Double),
    Column("beat_due", Double),
    # When a triggerer last ran the wait's trigger. Null: the deadline also counts time in which no triggerer runs.
    Column("seen_at", Double),
    # The claim on launching the external work (the job in the other system), and that system's answer.
    Column("launch_owner", Text),
    Column("launch_lease", Double),
    Column("launched_at", Double),
    Column("launch_answer", Text),
    # Cancellation of the external work: the encrypted trigger whose cancel() stops it, and the cancellation's state.
    Column("trigger", LargeBinary),
    Column("cancel", Text),
    Column("cancel_lease", Double),
    Column("cancel_tries", Integer, nullable=False, server_default="0"),
    # A JSON array of the systems on which the wait depends, as in the table of outages; null if there is none.
    Column("sources", Text),
    # The key that signs the wait's callback token, and how many callbacks were refused.
    Column("key_id", Text, nullable=False),
    Column("refused", Integer, nullable=False, server_default="0"),
    # For the watcher: the version of the last transaction that changed something that the waiting trigger must see.
    Column("version", BigInteger, nullable=False),
)
# Literals, not bound parameters: a planner uses a partial index only if a query contains the index's condition.
IS_WAITING: Final = waits.c.state == literal_column("'waiting'")
HAS_CHANGED: Final = or_(waits.c.state != literal_column("'waiting'"), waits.c.progress.is_not(None))
"""Is true if the wait has changed since its registration.

Other waits need no notification, because their triggers know the row as it was registered.
"""
CANCEL_IS_DUE: Final = waits.c.cancel == literal_column("'due'")

Index("deferrable_ops_waits_task", waits.c.dag_id, waits.c.run_id, waits.c.task_id, waits.c.map_index)
# Each index that changes when a wait settles makes every callback slower. Therefore most indexes below are partial.
Index(
    "deferrable_ops_waits_news",
    waits.c.version,
    sqlite_where=text("state <> 'waiting' OR progress IS NOT NULL"),
    postgresql_where=text("state <> 'waiting' OR progress IS NOT NULL"),
)
Index(
    "deferrable_ops_waits_deadline",
    waits.c.deadline,
    sqlite_where=text("state = 'waiting'"),
    postgresql_where=text("state = 'waiting'"),
)
Index(
    "deferrable_ops_waits_beat_due",
    waits.c.beat_due,
    sqlite_where=text("state = 'waiting' AND beat_due IS NOT NULL"),
    postgresql_where=text("state = 'waiting' AND beat_due IS NOT NULL"),
)
Index(
    "deferrable_ops_waits_seen",
    waits.c.seen_at,
    sqlite_where=text("state = 'waiting' AND seen_at IS NOT NULL"),
    postgresql_where=text("state = 'waiting' AND seen_at IS NOT NULL"),
)
Index("deferrable_ops_waits_created", waits.c.created_at)
Index(
    "deferrable_ops_waits_cancel",
    waits.c.cancel_lease,
    sqlite_where=text("cancel = 'due'"),
    postgresql_where=text("cancel = 'due'"),
)

callbacks = Table(
    "deferrable_ops_callbacks",
    metadata,
    # No foreign key, because its check costs 9 µs a callback. The wait exists: its row is locked during the insert.
    Column("wait_id", Text, primary_key=True),
    # SHA-256 of the verb and the body.
    Column("digest", LargeBinary, primary_key=True),
    # Increases in commit order.
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("verb", Text, nullable=False),
    Column("idempotency_key", Text),
    Column("source", Text, nullable=False),
    Column("received_at", Double, nullable=False),
    Column("status", Integer, nullable=False),
    Column("receipt", Text, nullable=False),
    Column("payload", Text),
    Column("accepted", Boolean, nullable=False),
    # Without a rowid, SQLite writes one B-tree instead of two.
    sqlite_with_rowid=False,
)
Index(
    "deferrable_ops_callbacks_key",
    callbacks.c.wait_id,
    callbacks.c.idempotency_key,
    unique=True,
    sqlite_where=text("idempotency_key IS NOT NULL"),
    postgresql_where=text("idempotency_key IS NOT NULL"),
)

keys = Table(
    "deferrable_ops_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("secret", LargeBinary, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
)

endpoints = Table(
    "deferrable_ops_endpoints",
    metadata,
    Column("id", Text, primary_key=True),
    Column("up_since", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
)

locks = Table(
    "deferrable_ops_locks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("free_at", Double, nullable=False),
)

daemons = Table(
    "deferrable_ops_daemons",
    metadata,
    Column("name", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("boot_id", Text, nullable=False),
    # The DAG run that last used the daemon.
    Column("dag_id", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("since", Double, nullable=False),
    # A JSON object with what a triggerer needs to stop the daemon; null if an older release recorded the daemon.
    Column("details", Text),
)

owner = Table(
    "deferrable_ops_owner",
    metadata,
    # One row: the deployment of Airflow to which the inbox belongs. Kept for ever.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("deployment", Text, nullable=False),
    Column("adopted_at", Double, nullable=False),
)

hosts = Table(
    "deferrable_ops_hosts",
    metadata,
    # A component of Airflow, or an endpoint, on one host. Deleted a week after it was last seen.
    Column("host", Text, primary_key=True),
    Column("component", Text, primary_key=True),
    # The deployment that the component belongs to; null until the deployment is known.
    Column("deployment", Text),
    Column("release", Text, nullable=False),
    Column("since", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
    Column("details", Text, nullable=False, server_default="{}"),
)

outages = Table(
    "deferrable_ops_outages",
    metadata,
    # An outage of Kafka, a region of Dataflow, a machine or the deployment, as one host sees it. Deleted at its end.
    Column("source", Text, primary_key=True),
    Column("host", Text, primary_key=True),
    Column("since", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
    Column("error", Text, nullable=False),
)

history = Table(
    "deferrable_ops_history",
    metadata,
    # What happened to a wait, in order. Deleted with the wait.
    Column("wait_id", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("event", Text, nullable=False),
    # The user, caller or host that caused the event.
    Column("actor", Text),
    Column("details", Text, nullable=False, server_default="{}"),
    sqlite_with_rowid=False,
)

requests = Table(
    "deferrable_ops_requests",
    metadata,
    # A request: an action that a triggerer must carry out. Deleted two weeks after it was made.
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    # The wait or the supervisord that the request is about.
    Column("target", Text, nullable=False),
    Column("arguments", Text, nullable=False, server_default="{}"),
    Column("actor", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    # The process that carries out the request, and the time until which no other process may do so.
    Column("owner", Text),
    Column("lease", Double),
    Column("done_at", Double),
    Column("answer", Text),
)
Index("deferrable_ops_requests_created", requests.c.created_at)

cursors = Table(
    "deferrable_ops_cursors",
    metadata,
    # A position: how far a reader has read. Deleted 40 days after its last change.
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("updated_at", Double, nullable=False),
)

counter = Table("deferrable_ops_counter", metadata, Column("value", BigInteger, primary_key=True))


def same_task(one: FromClause, other: FromClause) -> ColumnElement[bool]:
    """Return the SQL condition that is true if two waits belong to attempts of the same task instance."""
    return and_(*(one.c[name] == other.c[name] for name in ("dag_id", "run_id", "task_id", "map_index")))
