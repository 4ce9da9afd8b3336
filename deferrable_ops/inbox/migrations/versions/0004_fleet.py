"""Create the tables that describe a deployment: owner, hosts, outages, history, requests and cursors."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
# The HEAD of the oldest release that can use the tables after this migration.
oldest_reader = "0003"


def upgrade() -> None:
    op.add_column("deferrable_ops_alembic_version", sa.Column("oldest_reader", sa.Text(), nullable=True))
    op.add_column("deferrable_ops_waits", sa.Column("sources", sa.Text(), nullable=True))
    op.create_table(
        "deferrable_ops_owner",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("adopted_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "deferrable_ops_hosts",
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("component", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=True),
        sa.Column("release", sa.Text(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False, server_default="{}"),
        sa.PrimaryKeyConstraint("host", "component"),
    )
    op.create_table(
        "deferrable_ops_outages",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("source", "host"),
    )
    op.create_table(
        "deferrable_ops_history",
        sa.Column("wait_id", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=True),
        sa.Column("details", sa.Text(), nullable=False, server_default="{}"),
        sa.PrimaryKeyConstraint("wait_id", "number"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "deferrable_ops_requests",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("arguments", sa.Text(), nullable=False, server_default="{}"),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("lease", sa.Double(), nullable=True),
        sa.Column("done_at", sa.Double(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("deferrable_ops_requests_created", "deferrable_ops_requests", ["created_at"])
    op.create_table(
        "deferrable_ops_cursors",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
