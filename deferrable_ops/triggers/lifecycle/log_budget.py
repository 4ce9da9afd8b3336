"""Limits how many lines of output of external programs all tasks of a triggerer together copy into their logs.

A triggerer's parent process reads the log of all tasks, and reads it slowly (docs/known-airflow-bugs.md). So one
program that prints a lot would delay the log of every other task.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Final

from deferrable_ops import settings
from deferrable_ops.triggers.lifecycle import log_pipe

LINE_BYTES: Final = 500
"""A longer line counts as several lines."""

# The parent process may be this late with the log of each task.
_BURST_SECONDS: Final = 30.0


class LogBudget:
    """The number of log lines that tasks may still write. The number grows with the time, as in a token bucket.

    A caller gets at most half of the lines that are left. So a task whose program prints a lot leaves lines to the
    other tasks.

    :param rate: the number of lines per second by which the budget grows. A budget that is not used grows for at most
        30 seconds.
    :param clock: a function that returns the time in seconds.
    :param room: a function that returns how many bytes may be written now. This number is limited, because the logs of
        all tasks are late if the parent process has much to read.
    """

    def __init__(
        self,
        rate: float,
        clock: Callable[[], float] = time.monotonic,
        room: Callable[[], int] = log_pipe.room,
    ) -> None:
        self.rate = rate
        self._clock = clock
        self._room = room
        self._most = rate * _BURST_SECONDS
        self._left = self._most
        self._filled_at = clock()

    def take(self) -> int:
        """Take half of the lines that are left, and return their number. The caller must give unused lines back.

        Take fewer lines if their bytes may not be written now.
        """
        now = self._clock()
        self._left = min(self._most, self._left + self.rate * (now - self._filled_at))
        self._filled_at = now
        taken = min(max(0, round(self._left / 2)), self._room() // LINE_BYTES)
        self._left -= taken
        return taken

    def give_back(self, unused: int) -> None:
        """Give back the lines that the caller has taken, but not used. If `unused` is negative, the caller has used
        more lines.
        """
        self._left = min(self._most, self._left + unused)


@cache
def log_budget() -> LogBudget:
    """Return the log budget of this process. The setting ``[deferrable_ops] forward_logs_lines_per_second`` is its
    rate.
    """
    return LogBudget(settings.forward_logs_lines_per_second())
