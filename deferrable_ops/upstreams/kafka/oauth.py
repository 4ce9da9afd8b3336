"""Tokens for SASL's OAUTHBEARER, by OpenID Connect's client credentials."""

from __future__ import annotations

import time
from typing import Any

from deferrable_ops.upstreams.kafka.connection import OAuth

_REQUEST_SECONDS = 20.0
_MARGIN = 60.0  # seconds before it expires, when a token is replaced


def token_provider(oauth: OAuth) -> Any:
    """Return what aiokafka asks for a token whenever it connects."""
    import aiohttp
    from aiokafka.abc import AbstractTokenProvider
    from aiokafka.errors import AuthenticationFailedError

    class Tokens(AbstractTokenProvider):  # type: ignore[misc]
        """Fetches a token by OpenID Connect's client credentials, and keeps it until shortly before it expires."""

        def __init__(self) -> None:
            self._token = ""
            self._until = 0.0

        async def token(self) -> str:
            if time.monotonic() < self._until:
                return self._token
            form = {"grant_type": "client_credentials"} | ({"scope": oauth.scope} if oauth.scope else {})
            auth = aiohttp.BasicAuth(oauth.client_id, oauth.client_secret)
            limit = aiohttp.ClientTimeout(total=_REQUEST_SECONDS)
            try:
                async with (
                    aiohttp.ClientSession(timeout=limit, trust_env=True) as session,
                    session.post(oauth.endpoint, data=form, auth=auth) as response,
                ):
                    answer = await response.json(content_type=None) if response.ok else {}
                    status = response.status
            except (aiohttp.ClientError, ValueError) as error:
                raise OSError(f"no token of {oauth.endpoint}: {type(error).__name__}") from None
            if status in (400, 401, 403):
                raise AuthenticationFailedError(
                    f"{oauth.endpoint} gives {oauth.client_id} no token: {status}"
                )
            if not isinstance(answer, dict) or not answer.get("access_token"):
                raise OSError(f"no token of {oauth.endpoint}: it answered {status}")
            self._token = str(answer["access_token"])
            self._until = time.monotonic() + float(answer.get("expires_in", 0)) - _MARGIN
            return self._token

    return Tokens()
