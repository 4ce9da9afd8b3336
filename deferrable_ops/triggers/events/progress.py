"""Reports which events a waiting task has received, and which events are missing."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, ClassVar, Final, Self

from deferrable_ops.events.received import ReceivedEvents
from deferrable_ops.throttle import Throttle
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.lifecycle import background

PROGRESS: Final = "progress"
"""The XCom key of the progress."""

# A state with more events is not stored. Without a stored state, the events are counted again after a restart.
_MAX_KEPT_EVENTS = 50

_pushing = Throttle(1)


class ProgressReporter:
    """Writes the progress of one waiting task to the task's log, to an XCom and to the inbox.

    After a restart, the trigger resumes from the progress in the inbox. The first report is written about 2 s after
    the start of the ``with`` statement. Further reports are written after calls of :meth:`report_soon`. After the end
    of the ``with`` statement, only :meth:`push_final` reports progress.

    :param stores_state: whether the state of `received` is stored in the inbox, so that the trigger can resume from it
        after a restart.
    """

    # To save memory, these are attributes of the class: there is an object for each of thousands of waits.
    first_report_after: ClassVar[float] = 2.0
    """Seconds until the first report. By then, most events that arrived before the wait have been counted."""

    report_every: ClassVar[float] = 10.0
    """The shortest time between two reports, in seconds."""

    max_state_characters: ClassVar[int] = 100_000
    """A state whose JSON has more characters than this is not stored."""

    __slots__ = ("_is_over", "_pushed", "_received", "_reported_at", "_stores_state", "_timer", "_trigger")

    def __init__(self, trigger: TaskTrigger, received: ReceivedEvents, *, stores_state: bool) -> None:
        self._trigger = trigger
        self._received = received
        self._stores_state = stores_state
        self._reported_at = float("-inf")
        self._pushed: dict[str, Any] | None = None
        self._is_over = False
        self._timer: asyncio.TimerHandle | None = None

    def report_soon(self) -> None:
        """Report the progress as soon as the last report is at least :attr:`report_every` seconds old."""
        if self._timer is None:
            self._report_in(max(0.0, self._reported_at + self.report_every - time.monotonic()))

    def __enter__(self) -> Self:
        self._report_in(self.first_report_after)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop reporting, because a newer attempt of the task may already report its progress."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()

    async def push_final(self) -> None:
        """Push the final progress to the XCom ``progress``, if this XCom was pushed before and is outdated."""
        if self._pushed is not None and self._pushed != self._received.progress():
            await self._push()

    def _report_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._report)

    def _report(self) -> None:
        self._timer, self._reported_at = None, time.monotonic()
        progress = self._received.progress()
        self._trigger.log.info(
            "Received: %s. Still waiting for: %s", _describe_counts(progress["come"]), progress["missing"]
        )
        background.detach(self._store_and_push())

    async def _store_and_push(self) -> None:
        progress, state = self._received.progress(), self._received.state()
        if self._stores_state and self._is_small(state):
            progress["state"] = state
        if progress["come"]:
            await self._trigger.inbox.waits.save_progress(self._trigger.current.id, progress)
        # Only one wait at a time pushes its progress, because the triggerer handles one XCom at a time, in about 20 ms.
        with _pushing.slot() as granted:
            await granted
            if not self._is_over:
                await self._push()

    async def _push(self) -> None:
        self._pushed = self._received.progress()
        try:
            await self._trigger.push_xcom(PROGRESS, self._pushed)
        except Exception as error:
            self._trigger.log.warning(
                "Could not push the XCom %r: %s; the wait continues", PROGRESS, type(error).__name__
            )

    def _is_small(self, state: dict[str, Any]) -> bool:
        kept = sum(map(len, state["kept"].values()))
        return kept <= _MAX_KEPT_EVENTS and len(json.dumps(state)) <= self.max_state_characters


def _describe_counts(counts: dict[str, int]) -> str:
    return (
        ", ".join(name if count == 1 else f"{name} ({count} times)" for name, count in counts.items())
        or "nothing"
    )
