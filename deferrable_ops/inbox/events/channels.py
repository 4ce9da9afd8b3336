"""Channels: named addresses to which outside systems post events, and the secrets that prove who posts.

A secret is shown when it is made, and never again: the table has it as Airflow encrypts its connections. Requests come
often and channels change seldom, so each process keeps them for 5 s.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import RowMapping, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.exceptions import ConfigurationError, InputError, UnknownChannel
from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.encryption import airflow_fernet
from deferrable_ops.inbox.database.shared_call import SharedCall
from deferrable_ops.inbox.events.event_schema import channels

_RELOAD_SECONDS = 5.0  # within which a change reaches the other processes
_PAUSE_SECONDS = 0.5  # between two readings, which bounds what a flood of invented names costs
_WHAT: Final = "channels' secrets are"


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel.

    :param scheme: how its requests are verified.
    :param secrets: those that are valid: none, one, or during a rotation two.
    :param old_secret_until: until when the second is, in seconds since the epoch.
    """

    name: str
    scheme: str
    secrets: tuple[str, ...] = field(repr=False)
    created_at: float
    rotated_at: float | None
    old_secret_until: float | None


class Channels:
    """The channels of all endpoints that share this inbox."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rows: dict[str, RowMapping] = {}
        self._loaded_at = -float("inf")
        self._ahead = 0.0  # the database's clock, of the monotonic one
        self._load = SharedCall(self._load_now)

    async def add(self, name: str, scheme: str, secret: str | None) -> None:
        """Add a channel.

        :param secret: None for a scheme without.
        :raises InputError: there is one of this name.
        :raises ConfigurationError: Airflow has no key to encrypt the secret with.
        """
        sealed = None if secret is None else _sealed(secret)

        async def write(transaction: Transaction) -> bool:
            values = {"name": name, "scheme": scheme, "secret": sealed, "created_at": transaction.now}
            new = self._database.insert(channels).values(values).on_conflict_do_nothing()
            return (await transaction.connection.execute(new)).rowcount == 1

        if not await self._database.write(write):
            raise InputError(f"there is a channel {name}; rotate its secret, or remove it first")
        self._forget()

    async def rotate(self, name: str, secret: str, *, old_for: float) -> None:
        """Give a channel a new secret.

        :param old_for: for how many seconds the one so far is valid too.
        :raises UnknownChannel: there is no such channel.
        :raises InputError: its scheme has no secrets.
        """
        sealed = _sealed(secret)

        async def write(transaction: Transaction) -> None:
            rotated = (
                update(channels)
                .where(channels.c.name == name, channels.c.secret.is_not(None))
                .values(
                    secret=sealed,
                    old_secret=channels.c.secret if old_for > 0 else None,
                    old_secret_until=transaction.now + old_for if old_for > 0 else None,
                    rotated_at=transaction.now,
                )
            )
            if (await transaction.connection.execute(rotated)).rowcount == 0:
                known = select(channels.c.name).where(channels.c.name == name)
                if (await transaction.connection.execute(known)).first():
                    raise InputError(f"the channel {name} takes every request: it has no secret to rotate")
                raise _unknown(name)

        await self._database.write(write)
        self._forget()

    async def remove(self, name: str) -> None:
        """Remove a channel; its events stay for as long as all events do.

        :raises UnknownChannel: there is no such channel.
        """

        async def write(transaction: Transaction) -> None:
            removed = await transaction.connection.execute(delete(channels).where(channels.c.name == name))
            if removed.rowcount == 0:
                raise _unknown(name)

        await self._database.write(write)
        self._forget()

    async def scheme_of(self, name: str) -> str:
        """Return how a channel's requests are verified, as it is now.

        :raises UnknownChannel: there is no such channel.
        """
        scheme = next((channel.scheme for channel in await self.all() if channel.name == name), None)
        if scheme is None:
            raise _unknown(name)
        return scheme

    async def all(self) -> list[Channel]:
        """Return every channel as it is now, by name, and without secrets."""

        async def read(connection: AsyncConnection) -> list[RowMapping]:
            found = await connection.execute(select(channels).order_by(channels.c.name))
            return list(found.mappings())

        return [_channel(row, ()) for row in await self._database.read(read)]

    async def get(self, name: str) -> Channel:
        """Return a channel as it was at most 5 s ago.

        :raises UnknownChannel: there is no such channel.
        :raises ConfigurationError: its secrets were encrypted with another key.
        :raises InboxUnavailable: the database does not answer.
        """
        asked_at = time.monotonic()
        if asked_at - self._loaded_at > _RELOAD_SECONDS:
            await self._load()
        # One that was added a moment ago by another process is told to its sender at once.
        while name not in self._rows and self._loaded_at < asked_at:
            await self._load()
        row = self._rows.get(name)
        if row is None:
            raise _unknown(name)
        return _channel(row, _valid_secrets(row, self.now()))

    def now(self) -> float:
        """Return the database's clock, in seconds since the epoch, as of the last reading: it asks nobody."""
        return time.monotonic() + self._ahead

    def _forget(self) -> None:
        self._loaded_at = -float("inf")

    async def _load_now(self) -> None:
        await asyncio.sleep(self._loaded_at + _PAUSE_SECONDS - time.monotonic())
        loading_at = time.monotonic()
        rows, now = await self._database.read(self._read)
        self._ahead = now - time.monotonic()
        self._rows = {row["name"]: row for row in rows}
        self._loaded_at = loading_at

    async def _read(self, connection: AsyncConnection) -> tuple[list[RowMapping], float]:
        rows = list((await connection.execute(select(channels))).mappings())
        return rows, await self._database.clock(connection)


def _valid_secrets(row: RowMapping, now: float) -> tuple[str, ...]:
    from cryptography.fernet import InvalidToken

    sealed = [row["secret"]] if row["secret"] is not None else []
    if row["old_secret"] is not None and row["old_secret_until"] > now:
        sealed.append(row["old_secret"])
    try:
        return tuple(_unsealed(secret) for secret in sealed)
    except InvalidToken:
        raise ConfigurationError(
            f"the secrets of the channel {row['name']} were encrypted with another [core] fernet_key: set that one "
            "beside yours, separated by a comma, or rotate the channel's secret"
        ) from None


def _channel(row: RowMapping, secrets: tuple[str, ...]) -> Channel:
    values: dict[str, Any] = {
        name: row[name] for name in ("name", "scheme", "created_at", "rotated_at", "old_secret_until")
    }
    return Channel(**values, secrets=secrets)


def _sealed(secret: str) -> bytes:
    fernet = airflow_fernet(_WHAT)
    if not fernet.is_encrypted:
        raise ConfigurationError(
            f"[core] fernet_key is empty: set it, to the same on all machines; {_WHAT} kept encrypted with it"
        )
    sealed: bytes = fernet.encrypt(secret.encode())
    return sealed


@lru_cache(maxsize=1024)
def _unsealed(sealed: bytes) -> str:
    secret: bytes = airflow_fernet(_WHAT).decrypt(sealed)
    return secret.decode()


def _unknown(name: str) -> UnknownChannel:
    return UnknownChannel(
        f"this inbox has no channel {name}; an operator of Airflow adds it with `deferrable-ops channels add`"
    )
