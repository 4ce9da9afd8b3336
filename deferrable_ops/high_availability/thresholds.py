"""How often in a row a result must come before it counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability.results import Result


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How many results in a row make it so."""

    success: int = 1
    failure: int = 1

    @classmethod
    def of(cls, success: Any, failure: Any) -> Thresholds:
        """Return the thresholds.

        :raises InputError: one of them is no whole number above zero.
        """
        for name, value in (("success_threshold", success), ("failure_threshold", failure)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name}={value!r} must be a whole number, 1 or more")
        return cls(success, failure)

    def needed(self, result: Result) -> int:
        """Return how many of this result in a row it takes."""
        return self.success if result is Result.PASS else self.failure


@dataclass(frozen=True, slots=True)
class ConsecutiveResults:
    """What the checks have said so far.

    :param last: the last result; None before the first check.
    :param length: how often in a row it came; it is counted no further than it matters.
    :param health: the last result that came often enough in a row; None before the first.
    """

    last: Result | None = None
    length: int = 0
    health: Result | None = None

    def with_result(self, result: Result, thresholds: Thresholds, most: int) -> ConsecutiveResults:
        """Return the results after one more result.

        :param most: the longest results that matters. A run that goes on unchanged then has nothing new to keep.
        """
        length = min(self.length + 1 if result is self.last else 1, max(most, thresholds.needed(result)))
        confirmed = length >= thresholds.needed(result)
        return ConsecutiveResults(result, length, result if confirmed else self.health)

    def as_json(self) -> dict[str, Any]:
        """Return the results as a JSON object."""
        return {
            "last": None if self.last is None else self.last.value,
            "length": self.length,
            "health": None if self.health is None else self.health.value,
        }

    @classmethod
    def from_json(cls, data: Any) -> ConsecutiveResults:
        """Return the results that :meth:`as_json` wrote; a new one where there is none."""
        match data:
            case {"last": last, "length": int(length), "health": health}:
                return cls(_result(last), length, _result(health))
        return cls()


def _result(word: str | None) -> Result | None:
    return None if word is None else Result(word)
