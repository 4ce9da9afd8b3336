"""Requests tokens for SASL OAUTHBEARER, with the client credentials grant of OpenID Connect."""

from __future__ import annotations

import time
from typing import Any

from deferrable_ops.upstreams.kafka.connection import OAuthSettings

_REQUEST_SECONDS = 20.0
# A token is renewed this long before it expires.
_MARGIN_SECONDS = 60.0


def token_provider(oauth: OAuthSettings) -> Any:
    """Return the object from which aiokafka gets a token for each connection."""
    import aiohttp
    from aiokafka.abc import AbstractTokenProvider
    from aiokafka.errors import AuthenticationFailedError

    class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]
        """Requests an OAuth token, and keeps it for later connections. Shortly before the token expires, the object
        requests a new token.
        """

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
                raise OSError(
                    f"the token endpoint {oauth.endpoint} cannot be reached: {type(error).__name__}"
                ) from None
            if status in (400, 401, 403):
                raise AuthenticationFailedError(
                    f"the token endpoint {oauth.endpoint} refuses the client {oauth.client_id}: status {status}; check "
                    "sasl.oauthbearer.client.id and sasl.oauthbearer.client.secret"
                )
            if not isinstance(answer, dict) or not answer.get("access_token"):
                raise OSError(f"the token endpoint {oauth.endpoint} returned no token: status {status}")
            self._token = str(answer["access_token"])
            self._until = time.monotonic() + float(answer.get("expires_in", 0)) - _MARGIN_SECONDS
            return self._token

    return TokenProvider()
