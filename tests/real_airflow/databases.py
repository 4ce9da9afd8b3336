"""Where an Airflow under test keeps its metadata, and the library its inbox."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.hosts import Component
from deferrable_ops.inbox.large_values import run_sync
from real_airflow.postgres import Postgres


@dataclass(frozen=True)
class Database:
    """The two databases of one Airflow.

    :param backend: `sqlite` or `postgres`.
    :param metadata_url: Airflow's own, for synchronous use.
    :param inbox_url: the library's; None where it is to find its default, a SQLite file in AIRFLOW_HOME.
    """

    backend: str
    metadata_url: str
    inbox_url: str | None

    def environment(self) -> dict[str, str]:
        """Return the environment variables that point Airflow and the library here."""
        variables = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.metadata_url}
        if self.inbox_url is not None:
            variables["AIRFLOW__DEFERRABLE_OPS__INBOX_URL"] = self.inbox_url
        return variables


def sqlite_database(home: Path) -> Database:
    """Everything in AIRFLOW_HOME, as after a plain installation."""
    return Database("sqlite", f"sqlite:///{home}/airflow.db", None)


def postgres_database(server: Postgres) -> Database:
    """Create two new databases on one server."""
    return Database(
        "postgres",
        server.create_database("airflow", driver="psycopg2"),
        server.create_database("inbox", driver="asyncpg"),
    )


def announce_airflow(inbox_url: str) -> None:
    """Announce an API server of this host in a SQLite inbox. Without one, `deferrable-ops serve` does not start."""
    if inbox_url.startswith("sqlite"):
        run_sync(_announce(f"sqlite+aiosqlite:{inbox_url.partition(':')[2]}"))


async def _announce(url: str) -> None:
    inbox = await Inbox.open(url, retry_timeout=60)
    announcing = asyncio.create_task(inbox.hosts.announce(Component.API_SERVER))
    while not await inbox.hosts.airflow_is_here():
        await asyncio.sleep(0.01)
    announcing.cancel()
    await asyncio.gather(announcing, return_exceptions=True)
    await inbox.close()
