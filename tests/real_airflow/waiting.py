"""Waiting for a condition: the only way in which tests let time pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, timeout: float = 60, every: float = 0.2) -> T:
    """Return the first true value of `condition`.

    :param what: what is waited for, for the message.
    :param timeout: seconds. Generous: it is only ever used up by a failure.
    :param every: seconds between two looks.
    :raises AssertionError: when the condition did not come true in time.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {what}; the last look found {value!r}")
        time.sleep(every)
    return value
