"""Evaluates callbacks with the operator's JMESPath expressions, without using a database or a clock."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from deferrable_ops.expressions import EVALUATION_ERRORS, compiled, is_truthy
from deferrable_ops.outcome import Failure, Outcome, Skip, Success


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The effect of a callback on its wait.

    :param outcome: the outcome with which the callback ends the wait, or None if the wait continues.
    :param progress: the new progress of a wait that continues, or None if the progress is unchanged.
    :param note: a hint for the sender of the callback; the endpoint adds this hint to the response.
    """

    outcome: Outcome | None
    progress: Any = None
    note: str | None = None


def evaluate(verb: str, payload: Any, expected: dict[str, Any]) -> Evaluation:
    """Evaluate a callback, and return its effect on the wait: an outcome, new progress, or neither.

    :param verb: one of the values of :class:`~deferrable_ops.inbox.waits.callbacks.Verb`.
    :param payload: the JSON value of the callback's body.
    :param expected: the wait's JMESPath expressions ``failure_when``, ``success_when`` and ``result``, which are
        optional.
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
        return Evaluation(Failure(f"failure_when is true for the callback: {failure_when}"))
    if success_when is not None and _is_true("success_when", success_when, payload, notes):
        return Evaluation(_success(payload, expected))
    return Evaluation(None, progress=payload, note="; ".join(notes) or None)


def _success(payload: Any, expected: dict[str, Any]) -> Outcome:
    result = expected.get("result")
    if result is None:
        return Success(payload)
    try:
        value = compiled(result).search(payload)
        # Not every result is JSON: &name evaluates to an expression object.
        json.dumps(value)
        return Success(value)
    except EVALUATION_ERRORS as error:
        return Failure(
            f"the expression result={result!r} failed on the callback's payload: {error}; correct the expression",
            retryable=False,
        )


def _is_true(name: str, expression: str, payload: Any, notes: list[str]) -> bool:
    try:
        return is_truthy(compiled(expression).search(payload))
    except EVALUATION_ERRORS as error:
        notes.append(f"{name} cannot be evaluated on the callback's payload and is treated as false: {error}")
        return False


def _reason(payload: Any, otherwise: str) -> str:
    reason = payload.get("reason") if isinstance(payload, dict) else None
    return reason if isinstance(reason, str) and reason else otherwise
