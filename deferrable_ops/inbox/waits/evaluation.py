"""What a callback means for its wait, by the operator's JMESPath expressions. Pure: no database, no clock."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from deferrable_ops.expressions import CANNOT_BE_EVALUATED, compiled, is_truth
from deferrable_ops.outcome import Failure, Outcome, Skip, Success


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a callback means.

    :param outcome: how the wait ends; None while it goes on.
    :param progress: what to show of a wait that goes on; None leaves what is shown.
    :param note: what the sender should know, for the receipt.
    """

    outcome: Outcome | None
    progress: Any = None
    note: str | None = None


def evaluate(verb: str, payload: Any, expected: dict[str, Any]) -> Evaluation:
    """Judge a callback.

    :param verb: one of the values of :class:`~deferrable_ops.inbox.waits.callbacks.Verb`.
    :param payload: the request's body, decoded.
    :param expected: the wait's ``failure_when``, ``success_when`` and ``result``: JMESPath expressions, all optional.
    """
    match verb:
        case "heartbeat":
            return Evaluation(None, progress=payload or None)
        case "skip":
            return Evaluation(Skip(_reason(payload, "the outside service skipped the work")))
        case "failure":
            retryable = not (isinstance(payload, dict) and payload.get("retryable") is False)
            return Evaluation(Failure(_reason(payload, "the outside service reported a failure"), retryable))
        case "success":
            return Evaluation(_success(payload, expected))
    return _evaluate_expressions(payload, expected)


def _evaluate_expressions(payload: Any, expected: dict[str, Any]) -> Evaluation:
    failure_when, success_when = expected.get("failure_when"), expected.get("success_when")
    if failure_when is None and success_when is None:
        return Evaluation(_success(payload, expected))
    notes: list[str] = []
    if failure_when is not None and _is_true("failure_when", failure_when, payload, notes):
        return Evaluation(Failure(f"failure_when is true of the callback: {failure_when}"))
    if success_when is not None and _is_true("success_when", success_when, payload, notes):
        return Evaluation(_success(payload, expected))
    return Evaluation(None, progress=payload, note="; ".join(notes) or None)


def _success(payload: Any, expected: dict[str, Any]) -> Outcome:
    result = expected.get("result")
    if result is None:
        return Success(payload)
    try:
        value = compiled(result).search(payload)
        json.dumps(value)  # an expression can return a part of itself: &name
        return Success(value)
    except CANNOT_BE_EVALUATED as error:
        return Failure(
            f"result={result!r} cannot be evaluated on the callback's payload: {error}", retryable=False
        )


def _is_true(name: str, expression: str, payload: Any, notes: list[str]) -> bool:
    try:
        return is_truth(compiled(expression).search(payload))
    except CANNOT_BE_EVALUATED as error:
        notes.append(f"{name} cannot be evaluated on this payload, so it is not true: {error}")
        return False


def _reason(payload: Any, otherwise: str) -> str:
    reason = payload.get("reason") if isinstance(payload, dict) else None
    return reason if isinstance(reason, str) and reason else otherwise
