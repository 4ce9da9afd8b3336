"""Creates and upgrades the tables, under a lock, because several processes start together."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import Connection, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.exceptions import ConfigurationError
from deferrable_ops.inbox.database.database import Database
from deferrable_ops.inbox.database.schema import HEAD, alembic_version

# The key of a Postgres advisory lock, "defr": any number that is not used otherwise.
_LOCK = 0x64656672


async def migrate(database: Database) -> None:
    """Create or upgrade the tables. One query when they are up to date.

    :raises ConfigurationError: the database refused access, or a newer release of the library upgraded the tables.
    :raises InboxUnavailable: the database did not answer.
    """
    version = await database.read(_version)
    if version == HEAD:
        return
    if version is not None and version > HEAD:
        raise ConfigurationError(
            f"the inbox's tables have version {version}; this release of airflow-deferrable-ops supports up to {HEAD}; "
            "install the release that upgraded the tables on every Airflow machine"
        )
    # A slow import: not on the event loop.
    await asyncio.to_thread(__import__, "alembic.command")

    async def upgrade() -> None:
        async with database.begin() as connection:
            if database.dialect == "postgresql":
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            await connection.run_sync(_upgrade)

    await database.retry(upgrade)


async def _version(connection: AsyncConnection) -> str | None:
    try:
        return (await connection.execute(select(alembic_version.c.version_num))).scalar()
    except DBAPIError as error:
        if "deferrable_ops_alembic_version" in str(error.orig):
            # The table does not exist: a new database.
            return None
        raise


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations"))
    command.upgrade(config, "head")
