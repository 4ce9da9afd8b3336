"""Channels: named addresses to which outside systems post events, and the secrets that authenticate the senders.

A channel's secret is shown only once, when the secret is created. The secret is encrypted with Airflow's Fernet key.
Each process caches the channels for 5 s, because requests are frequent and changes are rare.
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

_RELOAD_INTERVAL = 5.0
_MIN_QUERY_INTERVAL = 0.5
# Subject and verb of a clause in the error messages about the encryption key.
_SECRETS_ARE: Final = "channels' secrets are"


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel.

    :param scheme: the signature scheme with which requests to the channel are verified.
    :param secrets: the valid secrets of the channel: none or one, or two during a rotation.
    :param old_secret_until: the time when the previous secret expires, in seconds since the epoch; None if the channel
        has no previous secret.
    """

    name: str
    scheme: str
    secrets: tuple[str, ...] = field(repr=False)
    created_at: float
    rotated_at: float | None
    old_secret_until: float | None


class Channels:
    """The channels of all endpoints that share this inbox.

    :param reload_interval: how many seconds the channels are cached. A change of a channel takes effect in other
        processes after at most `reload_interval` seconds.
    :param min_query_interval: the shortest time between two queries, in seconds. `min_query_interval` limits the load
        from requests with invented channel names.
    """

    def __init__(
        self,
        database: Database,
        *,
        reload_interval: float = _RELOAD_INTERVAL,
        min_query_interval: float = _MIN_QUERY_INTERVAL,
    ) -> None:
        self._database = database
        self._reload_interval = reload_interval
        self._min_query_interval = min_query_interval
        self._rows: dict[str, RowMapping] = {}
        self._loaded_at = -float("inf")
        # The database's clock minus the monotonic clock.
        self._clock_offset = 0.0
        self._load = SharedCall(self._load_now)

    async def add(self, name: str, scheme: str, secret: str | None) -> None:
        """Add a channel.

        :param secret: the channel's secret; None for a signature scheme without secrets.
        :raises InputError: if a channel with this name exists.
        :raises ConfigurationError: if Airflow has no Fernet key, with which the secret is encrypted.
        """
        encrypted = None if secret is None else _encrypt(secret)

        async def write(transaction: Transaction) -> bool:
            values = {"name": name, "scheme": scheme, "secret": encrypted, "created_at": transaction.now}
            new = self._database.insert(channels).values(values).on_conflict_do_nothing()
            return (await transaction.connection.execute(new)).rowcount == 1

        if not await self._database.write(write):
            raise InputError(
                f"the channel {name} already exists; rotate its secret, or remove the channel first"
            )
        self._expire_cache()

    async def rotate(self, name: str, secret: str, *, old_for: float) -> None:
        """Give a channel a new secret.

        :param old_for: for how many seconds the previous secret stays valid.
        :raises UnknownChannel: if there is no channel with this name.
        :raises InputError: if the channel's signature scheme has no secrets.
        """
        encrypted = _encrypt(secret)

        async def write(transaction: Transaction) -> None:
            rotated = (
                update(channels)
                .where(channels.c.name == name, channels.c.secret.is_not(None))
                .values(
                    secret=encrypted,
                    old_secret=channels.c.secret if old_for > 0 else None,
                    old_secret_until=transaction.now + old_for if old_for > 0 else None,
                    rotated_at=transaction.now,
                )
            )
            if (await transaction.connection.execute(rotated)).rowcount == 0:
                known = select(channels.c.name).where(channels.c.name == name)
                if (await transaction.connection.execute(known)).first():
                    raise InputError(
                        f"the channel {name} has no secret to rotate, because it accepts unauthenticated requests; to "
                        "verify requests, remove the channel, and add it again with another --verify"
                    )
                raise _unknown(name)

        await self._database.write(write)
        self._expire_cache()

    async def remove(self, name: str) -> None:
        """Remove a channel. The channel's events stay in the inbox for ``event_retention_days`` after their receipt.

        :raises UnknownChannel: if there is no channel with this name.
        """

        async def write(transaction: Transaction) -> None:
            removed = await transaction.connection.execute(delete(channels).where(channels.c.name == name))
            if removed.rowcount == 0:
                raise _unknown(name)

        await self._database.write(write)
        self._expire_cache()

    async def scheme_of(self, name: str) -> str:
        """Return the signature scheme of a channel, without using the cache.

        :raises UnknownChannel: if there is no channel with this name.
        """
        scheme = next((channel.scheme for channel in await self.all() if channel.name == name), None)
        if scheme is None:
            raise _unknown(name)
        return scheme

    async def all(self) -> list[Channel]:
        """Return all channels ordered by name, without their secrets and without using the cache."""

        async def read(connection: AsyncConnection) -> list[RowMapping]:
            found = await connection.execute(select(channels).order_by(channels.c.name))
            return list(found.mappings())

        return [_channel(row, ()) for row in await self._database.read(read)]

    async def get(self, name: str) -> Channel:
        """Return a channel, from a cache that is at most 5 s old.

        :raises UnknownChannel: if there is no channel with this name.
        :raises ConfigurationError: if the channel's secrets were encrypted with another Fernet key.
        :raises InboxUnavailable: if the database does not answer.
        """
        requested_at = time.monotonic()
        if requested_at - self._loaded_at > self._reload_interval:
            await self._load()
        # Another process may have added the channel since the last query.
        while name not in self._rows and self._loaded_at < requested_at:
            await self._load()
        row = self._rows.get(name)
        if row is None:
            raise _unknown(name)
        return _channel(row, _valid_secrets(row, self.now()))

    def now(self) -> float:
        """Return the time of the database's clock in seconds since the epoch, computed without a query."""
        return time.monotonic() + self._clock_offset

    def _expire_cache(self) -> None:
        self._loaded_at = -float("inf")

    async def _load_now(self) -> None:
        await asyncio.sleep(self._loaded_at + self._min_query_interval - time.monotonic())
        loading_at = time.monotonic()
        rows, now = await self._database.read(self._read)
        self._clock_offset = now - time.monotonic()
        self._rows = {row["name"]: row for row in rows}
        self._loaded_at = loading_at

    async def _read(self, connection: AsyncConnection) -> tuple[list[RowMapping], float]:
        rows = list((await connection.execute(select(channels))).mappings())
        return rows, await self._database.clock(connection)


def _valid_secrets(row: RowMapping, now: float) -> tuple[str, ...]:
    from cryptography.fernet import InvalidToken

    encrypted = [row["secret"]] if row["secret"] is not None else []
    if row["old_secret"] is not None and row["old_secret_until"] > now:
        encrypted.append(row["old_secret"])
    try:
        return tuple(_decrypt(secret) for secret in encrypted)
    except InvalidToken:
        raise ConfigurationError(
            f"the secrets of the channel {row['name']} were encrypted with another [core] fernet_key; add that key "
            "to [core] fernet_key, separated by a comma, or rotate the channel's secret"
        ) from None


def _channel(row: RowMapping, secrets: tuple[str, ...]) -> Channel:
    values: dict[str, Any] = {
        name: row[name] for name in ("name", "scheme", "created_at", "rotated_at", "old_secret_until")
    }
    return Channel(**values, secrets=secrets)


def _encrypt(secret: str) -> bytes:
    fernet = airflow_fernet(_SECRETS_ARE)
    if not fernet.is_encrypted:
        raise ConfigurationError(
            "[core] fernet_key is empty; set the same key on all Airflow machines, "
            f"because {_SECRETS_ARE} encrypted with this key"
        )
    encrypted: bytes = fernet.encrypt(secret.encode())
    return encrypted


@lru_cache(maxsize=1024)
def _decrypt(encrypted: bytes) -> str:
    secret: bytes = airflow_fernet(_SECRETS_ARE).decrypt(encrypted)
    return secret.decode()


def _unknown(name: str) -> UnknownChannel:
    return UnknownChannel(
        f"this inbox has no channel {name}; add it with `deferrable-ops channels add` on an Airflow machine"
    )
