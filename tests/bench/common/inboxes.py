"""The databases in which a bench keeps its waits: on SQLite, and on Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from real_airflow import Postgres

_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Databases:
    """Where new inboxes come from.

    :param name: ``SQLite`` or ``Postgres``.
    :param folder: for files of the bench.
    """

    name: str
    folder: Path
    server: Postgres | None = None

    def create(self) -> str:
        """Return the URL of a new, empty database."""
        if self.server is None:
            return f"sqlite+aiosqlite:///{self.folder / f'bench_{next(_numbers)}.db'}"
        return self.server.create_database("bench", "asyncpg")


@contextmanager
def both_databases(folder: Path) -> Iterator[list[Databases]]:
    """Return SQLite and Postgres, whose server runs meanwhile with its default settings: it waits for the disk."""
    server = Postgres()
    server.start()
    try:
        yield [Databases("SQLite", folder), Databases("Postgres", folder, server)]
    finally:
        server.remove()
