"""Copies an inbox to a file and from a file, for example to move the inbox from SQLite to Postgres.

The file has one JSON value per line: a header, one ``[table, row]`` per row, and the number of rows. The file contains
the keys that sign callback tokens, so keep the file as secret as the inbox.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, TextIO

from sqlalchemy import LargeBinary, Table, delete, insert, select, text

from deferrable_ops.exceptions import InputError
from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.schema import (
    HEAD,
    alembic_version,
    counter,
    endpoints,
    hosts,
    locks,
    metadata,
    outages,
    waits,
)
from deferrable_ops.inbox.events.event_schema import event_counter

# The state of running processes and of one database.
_LEFT_OUT: Final = (alembic_version, counter, endpoints, hosts, locks, outages)
_PREFIX: Final = "deferrable_ops_"
_ROWS_PER_BATCH: Final = 500
_NO_EXPORT: Final = (
    "the file is not an export of an inbox; give a file that `deferrable-ops inbox export` wrote"
)


class Transfer:
    """Copies all rows of an inbox to or from a file, except the rows about running processes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write_to(self, file: TextIO) -> dict[str, int]:
        """Write the inbox's rows to the file, and return the number of rows per table.

        All rows come from one snapshot of the database.
        """

        async def attempt() -> dict[str, int]:
            file.seek(0)
            file.truncate()
            numbers: Counter[str] = Counter()
            print(json.dumps({"deferrable_ops_export": 1, "schema": HEAD}), file=file)
            async with self._database.begin() as connection:
                if self._database.dialect == "postgresql":
                    await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
                for name, table in _tables().items():
                    result = await connection.stream(select(table).order_by(*table.primary_key.columns))
                    async for row in result.mappings():
                        print(json.dumps([name, _to_json(table, dict(row))]), file=file)
                        numbers[name] += 1
            print(numbers.total(), file=file)
            return dict(numbers)

        return await self._database.retry(attempt)

    async def read_from(self, file: TextIO) -> dict[str, int]:
        """Add the rows of a file to this inbox in one transaction, and return the number of rows per table.

        :raises InputError: if the inbox is not empty, the file is not a complete export, or a newer release has written
            the file.
        """

        async def write(transaction: Transaction) -> dict[str, int]:
            await _check_empty(transaction)
            await transaction.connection.execute(delete(event_counter))
            numbers: Counter[str] = Counter()
            batch: list[dict[str, Any]] = []
            current: Table | None = None
            file.seek(0)
            for table, row in _rows(file):
                if current is not None and (table is not current or len(batch) == _ROWS_PER_BATCH):
                    await transaction.connection.execute(insert(current), batch)
                    batch = []
                if table is waits:
                    # The old database counted versions differently. A higher version would hide later changes.
                    row["version"] = transaction.version
                current = table
                batch.append(row)
                numbers[table.name.removeprefix(_PREFIX)] += 1
            if current is not None:
                await transaction.connection.execute(insert(current), batch)
            return dict(numbers)

        return await self._database.write(write)


def _tables() -> dict[str, Table]:
    return {
        table.name.removeprefix(_PREFIX): table for table in metadata.sorted_tables if table not in _LEFT_OUT
    }


async def _check_empty(transaction: Transaction) -> None:
    for name, table in _tables().items():
        if table is event_counter:
            continue
        if (await transaction.connection.execute(select(table).limit(1))).first() is not None:
            raise InputError(
                f"this inbox is not empty: its table {name} has rows; stop Airflow, and import into a new database"
            )


def _rows(file: TextIO) -> Iterator[tuple[Table, dict[str, Any]]]:
    header = _parsed(file.readline())
    if not isinstance(header, dict) or "deferrable_ops_export" not in header:
        raise InputError(_NO_EXPORT)
    if header["schema"] > HEAD:
        raise InputError(
            f"the export has schema {header['schema']}, but this release supports schemas up to {HEAD}; install "
            "the release that wrote the export"
        )
    tables = _tables()
    for number, line in enumerate(file):
        parsed = _parsed(line)
        if isinstance(parsed, int):
            if parsed == number:
                return
            break
        name, row = parsed
        yield tables[name], _from_json(tables[name], row)
    raise InputError("the export is incomplete; run `deferrable-ops inbox export` again")


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise InputError(
            "the export is incomplete; run `deferrable-ops inbox export` again" if line else _NO_EXPORT
        ) from None


def _binary(table: Table) -> list[str]:
    return [column.name for column in table.columns if isinstance(column.type, LargeBinary)]


def _to_json(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    encoded = {name: b64encode(row[name]).decode() for name in _binary(table) if row[name] is not None}
    return row | encoded


def _from_json(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: b64decode(row[name]) for name in _binary(table) if row.get(name) is not None}
