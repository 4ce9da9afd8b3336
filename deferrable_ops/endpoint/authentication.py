"""Finds the callback token in a request, and the wait to which the token belongs."""

from __future__ import annotations

from starlette.types import Scope

from deferrable_ops.endpoint.body import header
from deferrable_ops.endpoint.logs import WAIT
from deferrable_ops.endpoint.resources import Resources
from deferrable_ops.endpoint.responses import RequestRejected
from deferrable_ops.exceptions import TokenRefused, UnknownKey
from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.waits.keys import check_form

_CHALLENGE = ((b"www-authenticate", b"Bearer"),)


async def verify_token(resources: Resources, scope: Scope, token: str) -> tuple[Inbox, str]:
    """Return the inbox, and the id of the wait that the token belongs to.

    A malformed token is rejected without opening the inbox. If the token is valid, the access log shows the id of the
    wait.

    :raises RequestRejected: with status 401, if the token is not valid; with status 404, if the inbox does not have the
        key that signed the token.
    """
    try:
        inbox = resources.inbox.opened
        if inbox is None:
            check_form(token)
            inbox = await resources.inbox.get()
        scope[WAIT] = wait_id = await inbox.keys.verify(token)
        return inbox, wait_id
    except UnknownKey as error:
        # An answer of its own reveals only whether a key id exists. Key ids are no secrets: every token contains one.
        resources.unknown_keys.add(error)
        raise RequestRejected(404, str(error)) from None
    except TokenRefused as error:
        raise unauthorized(str(error)) from None


def bearer_token(scope: Scope) -> str:
    """Return the bearer token in the header ``Authorization``.

    :raises RequestRejected: with status 401, if the header is missing or contains no bearer token.
    """
    scheme, _, token = (header(scope, b"authorization") or b"").partition(b" ")
    if scheme.lower() != b"bearer" or not token:
        raise unauthorized(
            "the header Authorization: Bearer <token> is missing; send the token in this header"
        )
    return token.strip().decode("latin-1")


def unauthorized(error: str) -> RequestRejected:
    """Return the exception that rejects a request with status 401, with `error` as the response's message."""
    return RequestRejected(401, error, _CHALLENGE)
