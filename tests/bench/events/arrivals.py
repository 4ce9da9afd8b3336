"""When what was sent has reached the triggers that wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from statistics import quantiles

from bench.common.processes import Child

_LOOK_SECONDS = 0.2


def until_fired(process: Child, waits: Iterable[str], seconds: float) -> dict[str, float]:
    """Return when the triggers of all waits have fired, by the machine's monotonic clock, once these have.

    :raises RuntimeError: one of them has not within so many seconds.
    """
    give_up_at = time.monotonic() + seconds
    while missing := set(waits) - (fired := process.ask("fired")).keys():
        if time.monotonic() > give_up_at:
            raise RuntimeError(f"{len(missing)} triggers have not fired, as that of {min(missing)}")
        time.sleep(_LOOK_SECONDS)
    return fired


def latencies(process: Child, sent: Mapping[str, float], seconds: float) -> list[float]:
    """Return how many milliseconds each wait's message took from when it was sent until its trigger fired."""
    fired = until_fired(process, sent, seconds)
    return [1000 * (fired[wait] - at) for wait, at in sent.items()]


def p99(values: list[float]) -> float:
    """Return the 99th percentile."""
    return quantiles(values, n=100, method="inclusive")[98]
