"""Add what a triggerer needs to stop a supervisord, and the time when a triggerer last ran the trigger of a wait."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
# The HEAD of the oldest release that can use the tables after this migration.
oldest_reader = "0003"


def upgrade() -> None:
    op.add_column("deferrable_ops_daemons", sa.Column("details", sa.Text(), nullable=True))
    op.add_column("deferrable_ops_waits", sa.Column("seen_at", sa.Double(), nullable=True))
    op.create_index(
        "deferrable_ops_waits_seen",
        "deferrable_ops_waits",
        ["seen_at"],
        sqlite_where=sa.text("state = 'waiting' AND seen_at IS NOT NULL"),
        postgresql_where=sa.text("state = 'waiting' AND seen_at IS NOT NULL"),
    )
