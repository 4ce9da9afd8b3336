"""Alembic environment: runs the migrations on the connection of :mod:`deferrable_ops.inbox.database.migrate`."""

from alembic import context

from deferrable_ops.inbox.database.schema import alembic_version, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=alembic_version.name,
    # The caller's transaction holds the lock, and the caller commits it.
    transactional_ddl=False,
)
context.run_migrations()
