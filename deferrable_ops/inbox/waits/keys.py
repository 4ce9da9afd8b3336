"""Callback tokens, and the keys that sign the callback tokens.

A token consists of the wait id, the key id and an HMAC-SHA256 in base64url, separated by dots. A token is computed when
it is needed, and is never stored. A wait always has the same token. The signing keys are generated and stored in the
inbox, so that all processes share the keys without configuration.
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

from deferrable_ops.exceptions import TokenRefused, UnknownKey
from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.schema import keys
from deferrable_ops.inbox.database.shared_call import SharedCall

_TOKEN = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.([0-9a-f]{8})\.([A-Za-z0-9_-]{43})")
_RELOAD_INTERVAL = 5.0
_MIN_QUERY_INTERVAL = 0.5
_REFUSED = (
    "the token is malformed, forged, or signed with a revoked key; use the current callback URL of the task"
)


@dataclass(frozen=True, slots=True)
class Key:
    """A signing key of 256 random bits."""

    id: str
    secret: bytes
    revoked: bool


class Keys:
    """Signs and verifies callback tokens.

    :param reload_interval: after this many seconds, the keys are read from the inbox again. If a key is revoked, other
        processes reject its tokens after at most `reload_interval` seconds.
    :param min_query_interval: the shortest time between two queries of the keys, in seconds. `min_query_interval`
        limits the load from requests with invented key ids.
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
        self._keys: dict[str, Key] = {}
        self._newest: Key | None = None
        self._loaded_at = float("-inf")
        self._load = SharedCall(self._load_now)

    async def current(self, transaction: Transaction) -> Key:
        """Return the newest key, which signs the tokens of new waits. The first call creates a key."""
        await self._read(transaction.connection)
        if self._newest is None or self._newest.revoked:
            await self._create(transaction)
        assert self._newest is not None
        return self._newest

    async def rotate(self, revoke_old: bool) -> str:
        """Create a new key, which signs the tokens of new waits, and return the key's id.

        :param revoke_old: if True, reject the tokens that are signed with older keys, including the tokens of tasks
            that are still waiting. The revocation takes effect on every endpoint within 5 s.
        """

        async def write(transaction: Transaction) -> str:
            if revoke_old:
                await transaction.connection.execute(
                    update(keys).where(keys.c.revoked_at.is_(None)).values(revoked_at=transaction.now)
                )
            return (await self._create(transaction)).id

        key_id = await self._database.write(write)
        # Read the keys again at their next use, to see the revocations.
        self._loaded_at = float("-inf")
        return key_id

    async def token(self, wait_id: str, key_id: str) -> str:
        """Return the token of a wait, signed with the given key.

        :raises TokenRefused: if the key was revoked.
        """
        key = await self._find(key_id)
        if key is None or key.revoked:
            raise TokenRefused(
                f"the key {key_id}, which signs the callback token of wait {wait_id}, was revoked; clear the task"
            )
        return f"{wait_id}.{key_id}.{_signature(key, wait_id)}"

    async def verify(self, token: str) -> str:
        """Return the wait id in a valid token, without checking that the wait exists.

        A token that is malformed or has a wrong signature is rejected without a database query. Signatures are compared
        in constant time. A token with an unknown key id causes a database query, which concurrent requests share.

        :raises TokenRefused: if the token is malformed or forged, or if the key that signed it was revoked.
        :raises UnknownKey: if the inbox has no key with the key id of the token.
        """
        wait_id, key_id, signature = _split(token)
        key = await self._find(key_id)
        if key is None:
            raise UnknownKey(wait_id, key_id)
        if key.revoked or not hmac.compare_digest(signature, _signature(key, wait_id)):
            raise TokenRefused(_REFUSED)
        return wait_id

    async def _find(self, key_id: str) -> Key | None:
        requested_at = time.monotonic()
        if requested_at - self._loaded_at > self._reload_interval:
            await self._load()
        # Another process may have created the key since the last query.
        while key_id not in self._keys and self._loaded_at < requested_at:
            await self._load()
        return self._keys.get(key_id)

    async def _load_now(self) -> None:
        await asyncio.sleep(self._loaded_at + self._min_query_interval - time.monotonic())
        loading_at = time.monotonic()
        await self._database.read(self._read)
        self._loaded_at = loading_at

    async def _read(self, connection: AsyncConnection) -> None:
        rows = (await connection.execute(select(keys).order_by(keys.c.created_at, keys.c.id))).all()
        found = [Key(row.id, row.secret, row.revoked_at is not None) for row in rows]
        self._keys = {key.id: key for key in found}
        self._newest = found[-1] if found else None

    async def _create(self, transaction: Transaction) -> Key:
        key = Key(secrets.token_hex(4), secrets.token_bytes(32), revoked=False)
        await transaction.connection.execute(
            insert(keys).values(id=key.id, secret=key.secret, created_at=transaction.now)
        )
        self._newest = self._keys[key.id] = key
        return key


def check_form(token: str) -> None:
    """Check that a string has the form of a callback token. The signature of the token is not checked.

    :raises TokenRefused: if the token is malformed.
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
