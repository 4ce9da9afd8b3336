"""POST and GET of ``/callbacks/{token}``: the callbacks of one wait, and where it stands.

The order of the checks is the contract of ``docs/callbacks.md``: the signature, the size, JSON, the fields of
the verb, the form of the Idempotency-Key; then the inbox decides.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from starlette.types import Receive, Scope

from deferrable_ops.endpoint.access import bearer_token, verified
from deferrable_ops.endpoint.answers import Answer, Refused, json_answer
from deferrable_ops.endpoint.body import parse_json
from deferrable_ops.endpoint.resources import Resources
from deferrable_ops.endpoint.verbs import check_body
from deferrable_ops.exceptions import InputError
from deferrable_ops.inbox import WaitState
from deferrable_ops.inbox.waits.callbacks import Callback, Verb

_IDEMPOTENCY_KEY = re.compile(rb"[\x21-\x7e]{1,255}")


async def take_callback(
    resources: Resources, scope: Scope, receive: Receive, token: str | None, verb: Verb
) -> Answer:
    """Record a callback, and return its receipt once it is committed."""
    inbox, wait_id = await verified(resources.inbox, token or bearer_token(scope))
    body = await resources.bodies.read(scope, receive, resources.limits.max_payload_bytes)
    payload = parse_json(body)
    try:
        check_body(verb, payload)
    except InputError as error:
        raise Refused(400, str(error)) from None
    callback = Callback(wait_id, verb, body, payload, idempotency_key=idempotency_key(scope))
    receipt = await inbox.callbacks.record(callback)
    return Answer(receipt.status, receipt.body.encode())


async def show_wait(resources: Resources, scope: Scope, token: str | None) -> Answer:
    """Return where the wait stands, and its times."""
    inbox, wait_id = await verified(resources.inbox, token or bearer_token(scope))
    wait = await inbox.waits.get(wait_id)
    expired = wait.state is WaitState.WAITING and wait.deadline <= await inbox.database.now()
    return json_answer(
        200,
        {
            "wait": wait.id,
            "state": WaitState.EXPIRED if expired else wait.state,
            "created_at": _iso(wait.created_at),
            "deadline": _iso(wait.deadline),
            "last_beat": _iso(wait.last_beat),
            "settled_at": _iso(wait.settled_at),
        },
    )


def idempotency_key(scope: Scope) -> str | None:
    """Return the request's Idempotency-Key; None when it has none.

    :raises Refused: 400, it is empty, longer than 255 characters, not visible ASCII, or given twice.
    """
    given = [value for name, value in scope["headers"] if name == b"idempotency-key"]
    if not given:
        return None
    if len(given) > 1 or not _IDEMPOTENCY_KEY.fullmatch(given[0]):
        raise Refused(400, "Idempotency-Key must be given once, with 1 to 255 visible ASCII characters")
    return bytes(given[0]).decode("ascii")


def _iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat()
