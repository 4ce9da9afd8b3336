"""Where an Airflow under test keeps its metadata, and the library its inbox."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
