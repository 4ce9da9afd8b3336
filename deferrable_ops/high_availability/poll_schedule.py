"""The pause between two checks."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability.results import Result
from deferrable_ops.high_availability.thresholds import ConsecutiveResults

DEFAULT_POLL_INTERVAL: Final = 60.0
DEFAULT_MAX_WAIT: Final = 600.0
MAX_DOUBLINGS: Final = 20
"""After this number of consecutive results FAIL, the pause no longer grows, even if it is shorter than `max_wait`."""


@dataclass(frozen=True, slots=True)
class PollSchedule:
    """The pause between two checks, in seconds.

    :param interval: the pause in seconds after a check with the result PASS, and after the first result FAIL.
    :param backoff: whether the pause doubles with each further result FAIL in a row.
    :param max_wait: the longest pause in seconds that the backoff can cause.
    :param jitter: a number from 0 to 1. Each pause is made shorter or longer at random, by at most this share of the
        pause. For example, 0.1 means up to 10 %.
    """

    interval: float = DEFAULT_POLL_INTERVAL
    backoff: bool = False
    max_wait: float = DEFAULT_MAX_WAIT
    jitter: float = 0.0

    @property
    def max_relevant_count(self) -> int:
        """The number of consecutive results FAIL after which the pause no longer changes.

        Up to this number, each further result FAIL can lengthen the pause.
        """
        return MAX_DOUBLINGS if self.backoff else 1

    def pause(self, results: ConsecutiveResults) -> float:
        """Return the number of seconds until the next check, which depends on the last results."""
        pause = self.interval
        if self.backoff and results.last is Result.FAIL:
            doubled = pause * 2.0 ** min(max(results.length - 1, 0), MAX_DOUBLINGS)
            pause = max(pause, min(doubled, self.max_wait))
        spread = self.jitter * (2.0 * random.random() - 1.0)  # noqa: S311 - no secret
        return pause * (1.0 + spread)


def check_jitter(value: Any) -> float:
    """Return the value of ``jitter`` if it is valid.

    :raises InputError: if ``jitter`` is not a number from 0 to 1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise InputError(
            f"jitter={value!r} must be a number from 0 to 1, for example 0.1 for up to 10 % of the interval"
        )
    return float(value)
