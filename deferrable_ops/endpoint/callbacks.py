"""``/callbacks/{token}``: POST records a callback of a wait, and GET returns the state of the wait.

A request is checked in the order that ``docs/callbacks.md`` promises: the token's signature, the size of the body, the
JSON of the body, the fields that the callback's verb knows, the form of the Idempotency-Key. After the endpoint's
checks, the inbox checks for duplicates and checks the state of the wait.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from starlette.types import Receive, Scope

from deferrable_ops.endpoint.authentication import bearer_token, verify_token
from deferrable_ops.endpoint.body import parse_json
from deferrable_ops.endpoint.resources import Resources
from deferrable_ops.endpoint.responses import JsonResponse, RequestRejected, json_response
from deferrable_ops.exceptions import InputError
from deferrable_ops.inbox import WaitState
from deferrable_ops.inbox.waits.callbacks import Callback, Verb

_IDEMPOTENCY_KEY = re.compile(rb"[\x21-\x7e]{1,255}")


async def accept_callback(
    resources: Resources, scope: Scope, receive: Receive, token: str | None, verb: Verb
) -> JsonResponse:
    """Record a callback, and return the callback's receipt once the callback is committed.

    :param token: the callback token in the path; None if the request has the token in the header ``Authorization``.
    """
    inbox, wait_id = await verify_token(resources, scope, token or bearer_token(scope))
    body = await resources.bodies.read(scope, receive, resources.settings.max_payload_bytes)
    payload = parse_json(body)
    try:
        check_body(verb, payload)
    except InputError as error:
        raise RequestRejected(400, str(error)) from None
    callback = Callback(wait_id, verb, body, payload, idempotency_key=idempotency_key(scope))
    receipt = await inbox.callbacks.record(callback)
    return JsonResponse(receipt.status, receipt.body.encode())


async def show_wait(resources: Resources, scope: Scope, token: str | None) -> JsonResponse:
    """Return a response with the state and the times of the wait that the token belongs to.

    :param token: the callback token in the path; None if the request has the token in the header ``Authorization``.
    """
    inbox, wait_id = await verify_token(resources, scope, token or bearer_token(scope))
    wait = await inbox.waits.get(wait_id)
    expired = wait.state is WaitState.WAITING and wait.deadline <= await inbox.database.now()
    return json_response(
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
    """Return the request's Idempotency-Key, or None if there is no key.

    :raises RequestRejected: with status 400, if the Idempotency-Key is empty, longer than 255 characters, not visible
        ASCII, or given twice.
    """
    given = [value for name, value in scope["headers"] if name == b"idempotency-key"]
    if not given:
        return None
    if len(given) > 1 or not _IDEMPOTENCY_KEY.fullmatch(given[0]):
        raise RequestRejected(
            400, "the header Idempotency-Key is invalid; send it once, with 1 to 255 visible ASCII characters"
        )
    return bytes(given[0]).decode("ascii")


def check_body(verb: Verb, payload: Any) -> None:
    """Check the known fields in a callback's body; the callback's verb decides which fields are known.

    The body may have more fields.

    :raises InputError: if a field of the body is invalid. The error message shows which field is wrong.
    """
    match verb:
        case Verb.FAILURE:
            fields = _fields(verb, payload, "the fields reason, retryable and payload")
            _check_text(verb, fields, "reason")
            if not isinstance(fields.get("retryable", True), bool):
                raise InputError("in the body of the failure callback, retryable must be true or false")
        case Verb.SKIP:
            _check_text(verb, _fields(verb, payload, "the field reason"), "reason")
        case Verb.HEARTBEAT:
            fields = _fields(verb, payload, "the fields progress and message")
            _check_text(verb, fields, "message")
            progress = fields.get("progress", 0)
            if isinstance(progress, bool) or not isinstance(progress, (int, float)) or not 0 <= progress <= 1:
                raise InputError(
                    "in the body of the heartbeat callback, progress must be a number from 0 to 1"
                )


def _fields(verb: Verb, payload: Any, known: str) -> dict[str, Any]:
    if not isinstance(payload, dict):
        raise InputError(f"the body of the {verb} callback must be a JSON object; it can have {known}")
    return payload


def _check_text(verb: Verb, fields: dict[str, Any], name: str) -> None:
    if not isinstance(fields.get(name, ""), str):
        raise InputError(f"in the body of the {verb} callback, {name} must be a string")


def _iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat()
