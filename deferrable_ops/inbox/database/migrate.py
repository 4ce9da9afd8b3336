"""Creates and upgrades the inbox's tables. A lock ensures that only one process at a time changes the tables."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops import settings
from deferrable_ops.exceptions import DeploymentError
from deferrable_ops.inbox.database.database import Database
from deferrable_ops.inbox.database.schema import HEAD, alembic_version

# The key of a Postgres advisory lock: the letters "defr" as a number. Any other unused number would do as well.
_LOCK = 0x64656672
_LOCK_INTERVAL = 0.05
_upgrading = threading.Lock()


@dataclass(frozen=True, slots=True)
class SchemaVersion:
    """The schema version of an inbox's tables.

    :param number: the number of the newest migration that ran, or None if the inbox has no tables.
    :param oldest_reader: the number of a migration. Every release that contains this migration can use the tables. If
        `oldest_reader` is None, every release that contains the migration `number` can use the tables.
    """

    number: str | None
    oldest_reader: str | None = None

    @property
    def is_outdated(self) -> bool:
        """True if this release cannot use the inbox's tables before it has upgraded the tables."""
        return self.number is None or self.number < HEAD

    @property
    def is_too_new(self) -> bool:
        """True if this release cannot use the inbox's tables, because a newer release has upgraded the tables."""
        return self.number is not None and self.number > HEAD and (self.oldest_reader or self.number) > HEAD


async def migrate(database: Database) -> None:
    """Create or upgrade the inbox's tables, unless ``[deferrable_ops] auto_upgrade`` is off.

    If the tables are up to date, this function runs only one query.

    :raises DeploymentError: if the database refused access, this release cannot use the tables, or the tables are
        outdated and `auto_upgrade` is off.
    :raises InboxUnavailable: if the database did not answer.
    """
    version = await schema_version(database)
    if version.is_too_new:
        raise DeploymentError(
            "the installed release of airflow-deferrable-ops is too old for the inbox's tables. This release supports "
            f"tables up to version {HEAD}, but a release that supports version "
            f"{version.oldest_reader or version.number} is needed; install a newer release"
        )
    if version.is_outdated:
        if not settings.auto_upgrade() and not database.in_memory:
            raise DeploymentError(
                f"the inbox's tables have version {version.number or 'none'}, but the installed release needs "
                f"version {HEAD}, and [deferrable_ops] auto_upgrade is off; "
                "run `deferrable-ops inbox upgrade`"
            )
        await upgrade(database)


async def schema_version(database: Database) -> SchemaVersion:
    """Return the schema version of the inbox's tables.

    :raises DeploymentError: if the database refused access.
    :raises InboxUnavailable: if the database did not answer.
    """
    return await database.read(_version)


async def upgrade(database: Database) -> None:
    """Create the inbox's tables, or upgrade the tables to the schema version of this release.

    :raises DeploymentError: if the database refused access.
    :raises InboxUnavailable: if the database did not answer.
    """
    # This import is slow and must not block the event loop.
    await asyncio.to_thread(__import__, "alembic.command")

    async def attempt() -> None:
        async with database.begin() as connection:
            if database.in_memory:
                driver: Any = (await connection.get_raw_connection()).driver_connection
                await driver.executescript(_script())
                return
            if database.dialect == "postgresql":
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            # Alembic keeps its state in global variables. A process may open the inboxes of several teams at once.
            while not _upgrading.acquire(blocking=False):
                await asyncio.sleep(_LOCK_INTERVAL)
            try:
                await connection.run_sync(_upgrade)
            finally:
                _upgrading.release()

    await database.retry(attempt)


async def _version(connection: AsyncConnection) -> SchemaVersion:
    # Select all columns, because older tables have no column oldest_reader.
    query = select(text("*")).select_from(alembic_version)
    try:
        row = (await connection.execute(query)).mappings().first()
    except DBAPIError as error:
        if alembic_version.name in str(error.orig):
            # The table does not exist: a new database.
            return SchemaVersion(None)
        raise
    return SchemaVersion(None) if row is None else SchemaVersion(row["version_num"], row.get("oldest_reader"))


@cache
def _script() -> str:
    """Return the SQL that creates the tables of an in-memory inbox. The migrations would be too slow for many tests."""
    with create_engine("sqlite://").begin() as connection:
        _upgrade(connection)
        driver: Any = connection.connection.driver_connection
        return "\n".join(driver.iterdump())


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations"))
    command.upgrade(config, "head")
    newest: Any = ScriptDirectory.from_config(config).get_revision("head")
    connection.execute(update(alembic_version).values(oldest_reader=newest.module.oldest_reader))
