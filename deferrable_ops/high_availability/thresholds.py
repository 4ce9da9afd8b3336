"""Counts equal consecutive results.

The action that a check returns is carried out only when enough consecutive checks have returned the same result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability.results import Result


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The number of consecutive checks that must return the same result before the action is carried out."""

    success: int = 1
    failure: int = 1

    @classmethod
    def of(cls, success: Any, failure: Any) -> Thresholds:
        """Return the thresholds, after validating them.

        :raises InputError: if a threshold is not a whole number of 1 or more.
        """
        for name, value in (("success_threshold", success), ("failure_threshold", failure)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name}={value!r} must be a whole number, 1 or more")
        return cls(success, failure)

    def needed(self, result: Result) -> int:
        """Return how many consecutive checks must return `result` before the action is carried out."""
        return self.success if result is Result.PASS else self.failure


@dataclass(frozen=True, slots=True)
class ConsecutiveResults:
    """The last result of a task's checks, and how many consecutive checks returned this result.

    :param last: the last result; None before the first check.
    :param length: the number of consecutive checks that returned the last result. The count stops at the largest number
        that still changes a decision or a pause.
    :param health: the last result that reached its threshold; None if no result has reached its threshold yet.
    """

    last: Result | None = None
    length: int = 0
    health: Result | None = None

    def with_result(self, result: Result, thresholds: Thresholds, most: int) -> ConsecutiveResults:
        """Return the consecutive results after one more result.

        :param most: the largest count that still changes the pause. The count stops at `most` or at the threshold of
            `result`, whichever is larger. After that, equal results do not change the state, and the state is not
            stored again.
        """
        length = min(self.length + 1 if result is self.last else 1, max(most, thresholds.needed(result)))
        confirmed = length >= thresholds.needed(result)
        return ConsecutiveResults(result, length, result if confirmed else self.health)

    def as_json(self) -> dict[str, Any]:
        """Return the consecutive results as a JSON object."""
        return {
            "last": None if self.last is None else self.last.value,
            "length": self.length,
            "health": None if self.health is None else self.health.value,
        }

    @classmethod
    def from_json(cls, data: Any) -> ConsecutiveResults:
        """Return the results from the JSON object that :meth:`as_json` returned.

        If `data` is None or has another format, return an object without results.
        """
        match data:
            case {"last": last, "length": int(length), "health": health}:
                return cls(_result(last), length, _result(health))
        return cls()


def _result(word: str | None) -> Result | None:
    return None if word is None else Result(word)
