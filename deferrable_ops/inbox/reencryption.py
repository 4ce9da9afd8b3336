"""Encrypts the inbox's secrets again after a change of Airflow's Fernet key."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Column, ColumnElement, Table, bindparam, select, update

from deferrable_ops.exceptions import ConfigurationError
from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.encryption import airflow_fernet
from deferrable_ops.inbox.database.schema import waits
from deferrable_ops.inbox.events.event_schema import channels

_ROWS_PER_BATCH = 500


class Reencrypted(NamedTuple):
    """The result of :func:`rotate_fernet`.

    :param triggers: the number of stored triggers that were encrypted again. A trigger is stored so that any triggerer
        can cancel the external work of a wait.
    :param secrets: the number of channels' secrets that were encrypted again.
    :param unreadable: the number of values that no key of ``[core] fernet_key`` decrypts. These values stay unchanged.
    """

    triggers: int
    secrets: int
    unreadable: int


async def rotate_fernet(database: Database) -> Reencrypted:
    """Encrypt all secrets in the inbox with the first key of ``[core] fernet_key``.

    This function can be called again after an error.

    :raises ConfigurationError: if ``[core] fernet_key`` is empty or malformed.
    """
    fernet = airflow_fernet("the inbox's secrets are")
    if not fernet.is_encrypted:
        raise ConfigurationError("[core] fernet_key is empty; set it to the new key and the old key: new,old")
    triggers, lost = await _rotate(database, fernet, waits, waits.c.id, waits.c.trigger)
    secrets = 0
    for column in (channels.c.secret, channels.c.old_secret):
        rotated, unreadable = await _rotate(database, fernet, channels, channels.c.name, column)
        secrets, lost = secrets + rotated, lost + unreadable
    return Reencrypted(triggers, secrets, lost)


async def _rotate(
    database: Database, fernet: Any, table: Table, key: Column[str], column: Column[bytes]
) -> tuple[int, int]:
    """Encrypt the values of one column again. Return the number of encrypted values, and the number of unreadable
    values.
    """
    from cryptography.fernet import InvalidToken

    after = ""
    rotated = unreadable = 0
    while True:

        async def write(transaction: Transaction, after: str = after) -> tuple[str, int, int]:
            batch: ColumnElement[bool] = (key > after) & column.is_not(None)
            # All transactions lock waits in the order of their ids, to avoid deadlocks.
            query = select(key, column).where(batch).order_by(key).limit(_ROWS_PER_BATCH).with_for_update()
            rows = (await transaction.connection.execute(query)).all()
            new = []
            for row_key, encrypted in rows:
                try:
                    new.append({"row": row_key, "new": fernet.rotate(encrypted)})
                except InvalidToken:
                    continue
            if new:
                change = update(table).where(key == bindparam("row")).values({column.name: bindparam("new")})
                await transaction.connection.execute(change, new)
            return (rows[-1][0] if rows else ""), len(new), len(rows) - len(new)

        after, changed, kept = await database.write(write)
        if not after:
            return rotated, unreadable
        rotated, unreadable = rotated + changed, unreadable + kept
