"""Who may call: the token of a wait, from the path or from a header."""

from __future__ import annotations

from starlette.types import Scope

from deferrable_ops.endpoint.answers import Refused
from deferrable_ops.endpoint.body import header
from deferrable_ops.endpoint.lazy_inbox import LazyInbox
from deferrable_ops.exceptions import TokenRefused
from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.waits.keys import check_form

_CHALLENGE = ((b"www-authenticate", b"Bearer"),)


async def verified(lazy_inbox: LazyInbox, token: str) -> tuple[Inbox, str]:
    """Return the inbox, and the id of the wait that the token was made for. Garbage opens no inbox.

    :raises Refused: 401.
    """
    try:
        inbox = lazy_inbox.opened
        if inbox is None:
            check_form(token)
            inbox = await lazy_inbox.get()
        return inbox, await inbox.keys.verify(token)
    except TokenRefused as error:
        raise unauthorized(str(error)) from None


def bearer_token(scope: Scope) -> str:
    """Return what stands after ``Authorization: Bearer``.

    :raises Refused: 401, there is no such header.
    """
    scheme, _, token = (header(scope, b"authorization") or b"").partition(b" ")
    if scheme.lower() != b"bearer" or not token:
        raise unauthorized("this address needs the header Authorization: Bearer <token>")
    return token.strip().decode("latin-1")


def unauthorized(error: str) -> Refused:
    """Return the refusal with status 401."""
    return Refused(401, error, _CHALLENGE)
