"""The keys that sign callback tokens, made and kept in the inbox, and the tokens themselves.

A token is ``wait id . key id . HMAC-SHA256 in base64url``. It is computed, never stored: the same wait always
has the same token. Whoever shares the inbox shares its keys, so there is nothing to configure.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import time
from base64 import urlsafe_b64encode
from dataclasses import dataclass

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.exceptions import TokenRefused
from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.schema import keys
from deferrable_ops.inbox.database.shared_call import SharedCall

_TOKEN = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.([0-9a-f]{8})\.([A-Za-z0-9_-]{43})")
_RELOAD_SECONDS = 5  # within which a revocation reaches the other processes
_PAUSE_SECONDS = 0.5  # between two readings, which bounds what a flood of invented key ids costs
_REFUSED = "the token is malformed, forged, or signed with a revoked key"


@dataclass(frozen=True, slots=True)
class Key:
    """A signing key of 256 random bits."""

    id: str
    secret: bytes
    revoked: bool


class Keys:
    """Signs and verifies callback tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._keys: dict[str, Key] = {}
        self._newest: Key | None = None
        self._loaded_at = float("-inf")
        self._load = SharedCall(self._load_now)

    async def current(self, transaction: Transaction) -> Key:
        """Return the newest key, which new waits are signed with; the first caller makes it."""
        await self._read(transaction.connection)
        if self._newest is None or self._newest.revoked:
            await self._make(transaction)
        assert self._newest is not None
        return self._newest

    async def rotate(self, revoke_old: bool) -> str:
        """Make a new key for the waits to come, and return its id.

        :param revoke_old: True refuses the tokens of every older key from now on (within 5 s on every
            endpoint), those of tasks that still wait included.
        """

        async def write(transaction: Transaction) -> str:
            if revoke_old:
                await transaction.connection.execute(
                    update(keys).where(keys.c.revoked_at.is_(None)).values(revoked_at=transaction.now)
                )
            return (await self._make(transaction)).id

        made = await self._database.write(write)
        self._loaded_at = float("-inf")  # what was revoked is read again
        return made

    async def token(self, wait_id: str, key_id: str) -> str:
        """Return the token of a wait, signed with the key that its row names.

        :raises TokenRefused: the key was revoked.
        """
        key = await self._find(key_id)
        if key is None or key.revoked:
            raise TokenRefused(
                f"the key {key_id} that signs the callbacks of wait {wait_id} was revoked; clear the task"
            )
        return f"{wait_id}.{key_id}.{_signature(key, wait_id)}"

    async def verify(self, token: str) -> str:
        """Return the id of the wait that the token was made for, whether that wait exists or not.

        Garbage is refused by its form, a forgery by its signature in constant time; neither asks the
        database. A key id that is not known does, for all such tokens together.

        :raises TokenRefused: the token is malformed, forged, or its key was revoked.
        """
        wait_id, key_id, signature = _split(token)
        key = await self._find(key_id)
        if key is None or key.revoked or not hmac.compare_digest(signature, _signature(key, wait_id)):
            raise TokenRefused(_REFUSED)
        return wait_id

    async def _find(self, key_id: str) -> Key | None:
        asked_at = time.monotonic()
        if asked_at - self._loaded_at > _RELOAD_SECONDS:
            await self._load()
        # A key that another process made a moment ago signs the tokens that it hands out at once.
        while key_id not in self._keys and self._loaded_at < asked_at:
            await self._load()
        return self._keys.get(key_id)

    async def _load_now(self) -> None:
        await asyncio.sleep(self._loaded_at + _PAUSE_SECONDS - time.monotonic())
        loading_at = time.monotonic()
        await self._database.read(self._read)
        self._loaded_at = loading_at

    async def _read(self, connection: AsyncConnection) -> None:
        rows = (await connection.execute(select(keys).order_by(keys.c.created_at, keys.c.id))).all()
        found = [Key(row.id, row.secret, row.revoked_at is not None) for row in rows]
        self._keys = {key.id: key for key in found}
        self._newest = found[-1] if found else None

    async def _make(self, transaction: Transaction) -> Key:
        key = Key(secrets.token_hex(4), secrets.token_bytes(32), revoked=False)
        await transaction.connection.execute(
            insert(keys).values(id=key.id, secret=key.secret, created_at=transaction.now)
        )
        self._newest = self._keys[key.id] = key
        return key


def check_form(token: str) -> None:
    """Make sure that a token looks like one, whoever signed it.

    :raises TokenRefused: it does not.
    """
    _split(token)


def _split(token: str) -> tuple[str, str, str]:
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise TokenRefused(_REFUSED)
    return match[1], match[2], match[3]


def _signature(key: Key, wait_id: str) -> str:
    digest = hmac.digest(key.secret, f"{wait_id}.{key.id}".encode(), "sha256")
    return urlsafe_b64encode(digest).rstrip(b"=").decode()
