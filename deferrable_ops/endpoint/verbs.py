"""What a callback's body must look like, by its verb."""

from __future__ import annotations

from typing import Any

from deferrable_ops.exceptions import InputError
from deferrable_ops.inbox.waits.callbacks import Verb


def check_body(verb: Verb, payload: Any) -> None:
    """Make sure that the body fits the verb. Fields beyond the known ones are allowed, and kept.

    :raises InputError: it does not; the message names the field.
    """
    match verb:
        case Verb.FAILURE:
            fields = _fields(verb, payload, "reason, retryable and payload")
            _check_text(verb, fields, "reason")
            if not isinstance(fields.get("retryable", True), bool):
                raise InputError("the body of failure is wrong: retryable must be true or false")
        case Verb.SKIP:
            _check_text(verb, _fields(verb, payload, "reason"), "reason")
        case Verb.HEARTBEAT:
            fields = _fields(verb, payload, "progress and message")
            _check_text(verb, fields, "message")
            progress = fields.get("progress", 0)
            if isinstance(progress, bool) or not isinstance(progress, (int, float)) or not 0 <= progress <= 1:
                raise InputError("the body of heartbeat is wrong: progress must be a number from 0 to 1")


def _fields(verb: Verb, payload: Any, known: str) -> dict[str, Any]:
    if not isinstance(payload, dict):
        raise InputError(f"the body of {verb} must be an object, whose fields {known} are optional")
    return payload


def _check_text(verb: Verb, fields: dict[str, Any], name: str) -> None:
    if not isinstance(fields.get(name, ""), str):
        raise InputError(f"the body of {verb} is wrong: {name} must be a string")
