"""How a wait ends: a success with a value, a failure with a reason, or a skip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Success:
    """The wait ended well.

    :param value: what the task's XCom becomes; any JSON value. ``None`` pushes no XCom, as in Airflow.
    """

    value: Any = None


@dataclass(frozen=True, slots=True)
class Failure:
    """The wait ended badly.

    :param reason: one sentence for the task's log.
    :param retryable: False makes the task fail at once, whatever its ``retries`` say.
    """

    reason: str
    retryable: bool = True


@dataclass(frozen=True, slots=True)
class Skip:
    """The work turned out not to be needed.

    :param reason: one sentence for the task's log.
    """

    reason: str


Outcome = Success | Failure | Skip


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome as the JSON object that the inbox keeps."""
    match outcome:
        case Success(value):
            return {"outcome": "success", "value": value}
        case Failure(reason, retryable):
            return {"outcome": "failure", "reason": reason, "retryable": retryable}
        case Skip(reason):
            return {"outcome": "skip", "reason": reason}


def outcome_from_json(data: dict[str, Any]) -> Outcome:
    """Return the outcome that :func:`outcome_to_json` wrote.

    :raises ValueError: the object is not one of its three shapes.
    """
    match data:
        case {"outcome": "success", "value": value}:
            return Success(value)
        case {"outcome": "failure", "reason": str(reason), "retryable": bool(retryable)}:
            return Failure(reason, retryable)
        case {"outcome": "skip", "reason": str(reason)}:
            return Skip(reason)
    raise ValueError(f"not an outcome: {data!r}")
