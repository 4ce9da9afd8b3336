"""Create the tables of waits, callbacks, signing keys, endpoints and locks."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "deferrable_ops_counter",
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("value"),
    )
    op.create_table(
        "deferrable_ops_endpoints",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("up_since", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "deferrable_ops_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "deferrable_ops_locks",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("free_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "deferrable_ops_waits",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("ti_id", sa.Text(), nullable=False),
        sa.Column("try_number", sa.Integer(), nullable=False),
        sa.Column("dag_id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("map_index", sa.Integer(), nullable=False),
        sa.Column("logical_date", sa.Double(), nullable=True),
        sa.Column("feature", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("expected", sa.Text(), server_default="{}", nullable=False),
        sa.Column("progress", sa.Text(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("settled_at", sa.Double(), nullable=True),
        sa.Column("deadline", sa.Double(), nullable=False),
        sa.Column("heartbeat_timeout", sa.Double(), nullable=True),
        sa.Column("last_beat", sa.Double(), nullable=True),
        sa.Column("beat_due", sa.Double(), nullable=True),
        sa.Column("launch_owner", sa.Text(), nullable=True),
        sa.Column("launch_lease", sa.Double(), nullable=True),
        sa.Column("launched_at", sa.Double(), nullable=True),
        sa.Column("launch_answer", sa.Text(), nullable=True),
        sa.Column("trigger", sa.LargeBinary(), nullable=True),
        sa.Column("cancel", sa.Text(), nullable=True),
        sa.Column("cancel_lease", sa.Double(), nullable=True),
        sa.Column("cancel_tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("refused", sa.Integer(), server_default="0", nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "deferrable_ops_waits_beat_due",
        "deferrable_ops_waits",
        ["beat_due"],
        unique=False,
        sqlite_where=sa.text("state = 'waiting' AND beat_due IS NOT NULL"),
        postgresql_where=sa.text("state = 'waiting' AND beat_due IS NOT NULL"),
    )
    op.create_index(
        "deferrable_ops_waits_cancel",
        "deferrable_ops_waits",
        ["cancel_lease"],
        unique=False,
        sqlite_where=sa.text("cancel = 'due'"),
        postgresql_where=sa.text("cancel = 'due'"),
    )
    op.create_index(
        "deferrable_ops_waits_deadline",
        "deferrable_ops_waits",
        ["deadline"],
        unique=False,
        sqlite_where=sa.text("state = 'waiting'"),
        postgresql_where=sa.text("state = 'waiting'"),
    )
    op.create_index(
        "deferrable_ops_waits_news",
        "deferrable_ops_waits",
        ["version"],
        unique=False,
        sqlite_where=sa.text("state <> 'waiting' OR progress IS NOT NULL"),
        postgresql_where=sa.text("state <> 'waiting' OR progress IS NOT NULL"),
    )
    op.create_index(
        "deferrable_ops_waits_task",
        "deferrable_ops_waits",
        ["dag_id", "run_id", "task_id", "map_index"],
        unique=False,
    )
    op.create_index("deferrable_ops_waits_created", "deferrable_ops_waits", ["created_at"], unique=False)
    op.create_table(
        "deferrable_ops_callbacks",
        sa.Column("wait_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("verb", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("receipt", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=True),
        sa.Column("accepted", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("wait_id", "digest", "number"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "deferrable_ops_callbacks_key",
        "deferrable_ops_callbacks",
        ["wait_id", "idempotency_key"],
        unique=True,
        sqlite_where=sa.text("idempotency_key IS NOT NULL"),
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.execute("INSERT INTO deferrable_ops_counter (value) VALUES (0)")
