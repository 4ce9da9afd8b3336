"""The outcome of a wait: success with a value, failure with a reason, or skip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Success:
    """The task succeeds.

    :param value: the value of the task's XCom, any JSON value. For ``None``, no XCom is pushed, as in Airflow.
    """

    value: Any = None


@dataclass(frozen=True, slots=True)
class Failure:
    """The task fails.

    :param reason: one sentence with the reason, for the task's log.
    :param retryable: if False, the task fails immediately, and its remaining ``retries`` are not used.
    """

    reason: str
    retryable: bool = True


@dataclass(frozen=True, slots=True)
class Skip:
    """The task is skipped, because there was nothing to do.

    :param reason: one sentence with the reason, for the task's log.
    """

    reason: str


Outcome = Success | Failure | Skip


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """Return the JSON object that the inbox stores for an outcome."""
    match outcome:
        case Success(value):
            return {"outcome": "success", "value": value}
        case Failure(reason, retryable):
            return {"outcome": "failure", "reason": reason, "retryable": retryable}
        case Skip(reason):
            return {"outcome": "skip", "reason": reason}


def outcome_from_json(data: dict[str, Any]) -> Outcome:
    """Convert a JSON object that :func:`outcome_to_json` returned back to an outcome.

    :raises ValueError: if the JSON object is not an outcome.
    """
    match data:
        case {"outcome": "success", "value": value}:
            return Success(value)
        case {"outcome": "failure", "reason": str(reason), "retryable": bool(retryable)}:
            return Failure(reason, retryable)
        case {"outcome": "skip", "reason": str(reason)}:
            return Skip(reason)
    raise ValueError(f"the JSON object is not an outcome: {data!r}")
