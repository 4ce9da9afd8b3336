"""The outages that this process sees: which system does not answer, since when, and the last error.

The client of an external system reports, in any thread, that the system failed or answered. An outage of a system on
which a waiting task depends is written to the task's log after 30 s, and then at doubling intervals. If the task times
out, the reason of the failure also names the outage. The inbox stores one row per outage; see `inbox/outages.py`.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from deferrable_ops.exceptions import AirflowUnavailable, DeploymentError

INBOX: Final = "the inbox"
DEPLOYMENT: Final = "the deployment"
AIRFLOW: Final = "Airflow's API"
_COMMON: Final = frozenset({INBOX, DEPLOYMENT, AIRFLOW})
"""Every waiting task depends on these systems."""

REPORT_LASTS: Final = 120.0
"""An outage counts as over if it was not reported again for this many seconds."""

FIRST_LINE_AFTER: Final = 30.0
_LONGEST_INTERVAL: Final = 3600.0
_TICK: Final = 5.0

# An outage may begin for thousands of tasks at the same moment. The parent process of a triggerer reads a few hundred
# log lines a second, and the event loop must run other triggers meanwhile.
_LINES_PER_TURN: Final = 50
_TURN_PAUSE: Final = 0.25

_ENDED_PER_SOURCE: Final = 100


@dataclass(slots=True)
class Outage:
    """An outage of one system. Times are in seconds, by the clock of the :class:`Outages`.

    :param source: the name of the system, such as ``Kafka (kafka_default)``.
    :param until: the time from which the outage counts as over, unless it is reported again.
    """

    source: str
    since: float
    seen_at: float
    error: str
    until: float = float("inf")


class Follower:
    """During its ``with`` statement, writes outages of the systems on which a task depends to the task's log.

    To save memory, the follower itself is the context manager, because there are thousands of followers.

    :ivar since: the time since which the trigger has been running in this process, by the clock of the
        :class:`Outages`.
    :ivar lines: a dict from the name of a system to three numbers: the start of its outage, the time of the next line
        in the task's log, and the pause before that line, in seconds. None if there is no outage.
    """

    __slots__ = ("_context", "_log", "_outages", "lines", "since", "sources")

    def __init__(self, outages: Outages, sources: tuple[str, ...], log: Any) -> None:
        self._outages = outages
        self._log = log
        # Airflow selects the task's log by the context of the trigger.
        self._context = copy_context()
        self.sources = sources
        self.since = outages.now()
        self.lines: dict[str, tuple[float, float, float]] | None = None

    def __enter__(self) -> Self:
        self._outages.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._outages.remove(self)

    def write_due_lines(self, active: dict[str, Outage], now: float) -> int:
        """For each outage, write a line to the task's log if the time of the next line has come.

        Return the number of lines that were written.
        """
        lines, written = self.lines or {}, 0
        for source, outage in active.items():
            if source not in self.sources and source not in _COMMON:
                continue
            start = max(outage.since, self.since)
            known = lines.get(source)
            if known is None or known[0] != start:
                known = start, start + FIRST_LINE_AFTER, FIRST_LINE_AFTER
            _, due, interval = known
            if now >= due:
                text = "%s has been unreachable for %.0f s; retrying until the deadline: %s"
                self._context.run(self._log.warning, text, source, now - start, outage.error)
                written += 1
                interval = min(2 * interval, _LONGEST_INTERVAL)
                due = now + interval
            lines[source] = start, due, interval
        for source in [source for source in lines if source not in active]:
            _, _, interval = lines.pop(source)
            if interval > FIRST_LINE_AFTER:
                self._context.run(self._log.info, "%s can be reached again", source)
                written += 1
        self.lines = lines or None
        return written

    def describe(self, seconds: float) -> str | None:
        """Return a sentence about the system that was unreachable for longest; None if every system answered.

        :param seconds: how long the task has waited, in seconds; the sentence contains this number.
        """
        return self._outages.describe(self.sources, self.since, seconds)


class Outages:
    """The outages that one process sees. The methods `failed` and `recovered` may be called in any thread.

    :param clock: a function that returns the time of a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._active: dict[str, Outage] = {}
        # By source, the start and the end of each ended outage, and its last error.
        self._ended: dict[str, deque[tuple[float, float, str]]] = {}
        self._followers: WeakKeyDictionary[asyncio.AbstractEventLoop, set[Follower]] = WeakKeyDictionary()
        # The followers that have not had their turn yet.
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, list[Follower]] = WeakKeyDictionary()
        self._timers: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.TimerHandle] = WeakKeyDictionary()

    def failed(self, source: str, error: str, *, lasts: float = float("inf")) -> None:
        """Report that a system does not answer.

        :param error: the error message for logs, without secrets.
        :param lasts: the outage counts as over if it is not reported again for this many seconds. By default, the
            outage is over only when :meth:`recovered` is called.
        """
        now = self._clock()
        with self._lock:
            self._end_silent(now)
            outage = self._active.setdefault(source, Outage(source, now, now, error))
            outage.seen_at, outage.error, outage.until = now, error, now + lasts

    def recovered(self, source: str) -> None:
        """Report that a system answers again."""
        if source in self._active:
            with self._lock:
                self._end(source, self._clock())

    def active(self) -> list[Outage]:
        """Return the outages that have not ended."""
        with self._lock:
            self._end_silent(self._clock())
            return list(self._active.values())

    def now(self) -> float:
        """Return the current time by the clock of this object, in seconds."""
        return self._clock()

    def describe(self, sources: Iterable[str], since: float, seconds: float) -> str | None:
        """Return a sentence about the system that was unreachable for longest; None if every system answered.

        :param since: the time since which the trigger has been running in this process. Outages before this time are
            ignored.
        :param seconds: how long the task has waited, in seconds; the sentence contains this number.
        """
        now, worst = self._clock(), (0.0, "", "")
        with self._lock:
            for source in {*sources, *_COMMON}:
                spans = list(self._ended.get(source, ()))
                if (outage := self._active.get(source)) is not None:
                    spans.append((outage.since, min(now, outage.until), outage.error))
                down = sum(max(0.0, end - max(start, since)) for start, end, _ in spans)
                if down > worst[0]:
                    worst = down, source, spans[-1][2]
        down, source, error = worst
        # On a busy machine, a wait ends later than its timeout.
        down = min(down, seconds)
        if down < 1:
            return None
        return f"{source} was unreachable for {down:.0f} of {seconds:.0f} s: {error}"

    def follow(self, sources: tuple[str, ...], log: Any) -> Follower:
        """Return a context manager that writes the outages of the given systems to a task's log."""
        return Follower(self, sources, log)

    def add(self, follower: Follower) -> None:
        """Start to write outages to the log of a follower's task.

        Call this method on the event loop of the follower.
        """
        loop = asyncio.get_running_loop()
        self._followers.setdefault(loop, set()).add(follower)
        if loop not in self._timers:
            self._set_timer(loop, _TICK)

    def remove(self, follower: Follower) -> None:
        """Stop writing outages to the log of a follower's task."""
        loop = asyncio.get_running_loop()
        followers = self._followers[loop]
        followers.discard(follower)
        if not followers:
            self._timers.pop(loop).cancel()
            self._turns.pop(loop, None)

    def write_due_lines(self) -> bool:
        """Call :meth:`Follower.write_due_lines` for the followers of the running event loop, one after the other, until
        some tens of lines are written. Return whether some followers had no turn and are left for the next call.
        """
        loop = asyncio.get_running_loop()
        now, active = self._clock(), {outage.source: outage for outage in self.active()}
        followers = self._followers.get(loop, set())
        left = self._turns.get(loop) or list(followers)
        self._turns[loop] = left
        written = 0
        while left and written < _LINES_PER_TURN:
            follower = left.pop()
            if follower in followers and (active or follower.lines):
                written += follower.write_due_lines(active, now)
        return bool(left)

    def _set_timer(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        # The context is empty, because the timer outlives the trigger that sets it.
        self._timers[loop] = loop.call_later(seconds, self._tick, loop, context=Context())

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        pause = _TICK
        try:
            if self.write_due_lines():
                pause = _TURN_PAUSE
        finally:
            self._set_timer(loop, pause)

    def _end_silent(self, now: float) -> None:
        for source in [source for source, outage in self._active.items() if outage.until < now]:
            self._end(source, self._active[source].seen_at)

    def _end(self, source: str, at: float) -> None:
        outage = self._active.pop(source, None)
        if outage is not None:
            ended = self._ended.setdefault(source, deque(maxlen=_ENDED_PER_SOURCE))
            ended.append((outage.since, at, outage.error))


def common_source(error: BaseException) -> str | None:
    """Return the name of the system that failed, if every waiting task depends on this system; None otherwise."""
    if isinstance(error, DeploymentError):
        return DEPLOYMENT
    return AIRFLOW if isinstance(error, AirflowUnavailable) else None


def kafka_source(conn_id: str) -> str:
    """Return the name of a Kafka cluster for logs. The name contains the id of its Airflow connection."""
    return sys.intern(f"Kafka ({conn_id})")


def http_source(conn_id: str | None, url: str | None) -> str:
    """Return the name of an HTTP service for logs.

    The name contains the id of the service's Airflow connection or, without a connection, the host in the URL.
    """
    if conn_id is None:
        # An invalid URL fails the launch, with its own message.
        with suppress(ValueError):
            return sys.intern(f"HTTP ({urlsplit(url or '').hostname})")
    return sys.intern(f"HTTP ({conn_id})")


def sqs_source(source: str) -> str:
    """Return the name of an SQS queue for logs.

    :param source: the `source` of the queue's events. The name contains the part after the first colon.
    """
    return sys.intern(f"SQS ({source.partition(':')[2]})")


outages: Final = Outages()
"""The outages of this process."""
