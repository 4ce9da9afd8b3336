"""Alembic's entry: runs the migrations on the connection that :mod:`deferrable_ops.inbox.database.migrate` holds."""

from alembic import context

from deferrable_ops.inbox.database.schema import alembic_version, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=alembic_version.name,
    transactional_ddl=False,  # the caller's transaction holds the lock and commits
)
context.run_migrations()
