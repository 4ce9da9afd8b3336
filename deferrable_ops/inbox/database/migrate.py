"""Brings a database to the newest schema, under a lock, because several processes start together."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import Connection, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.exceptions import ConfigurationError
from deferrable_ops.inbox.database.database import Database
from deferrable_ops.inbox.database.schema import HEAD, alembic_version

_LOCK = 0x64656672  # any number that no one else locks: "defr"


async def migrate(database: Database) -> None:
    """Create or upgrade the tables; quick when there is nothing to do.

    :raises ConfigurationError: the database does not let this deployment in, or is of a newer version of the library.
    :raises InboxUnavailable: the database did not answer.
    """
    version = await database.read(_version)
    if version == HEAD:
        return
    if version is not None and version > HEAD:
        raise ConfigurationError(
            f"the inbox's tables have version {version}, and this airflow-deferrable-ops knows {HEAD}; "
            "install the newer release, which upgraded them, on every Airflow machine"
        )
    await asyncio.to_thread(__import__, "alembic.command")  # heavy: not on the loop

    async def upgrade() -> None:
        async with database.begin() as connection:
            if database.dialect == "postgresql":
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            await connection.run_sync(_upgrade)

    await database.persist(upgrade)


async def _version(connection: AsyncConnection) -> str | None:
    try:
        return (await connection.execute(select(alembic_version.c.version_num))).scalar()
    except DBAPIError as error:
        if "deferrable_ops_alembic_version" in str(error.orig):
            return None  # no such table: a new database
        raise


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations"))
    command.upgrade(config, "head")
