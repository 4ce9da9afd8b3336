"""How a wait for several events says what has come and what is missing, while it goes on."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, Final, Self

from deferrable_ops.events.gathering import Gathering
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.lifecycle import background
from deferrable_ops.triggers.lifecycle.throttle import Throttle

PROGRESS: Final = "progress"
"""The XCom that says it."""

_FIRST_AFTER = 2.0  # most of what has come already is there by then
_EVERY = 10.0
# What is more, or larger, is gathered again from the events themselves.
_MOST_KEPT = 50
_LARGEST_STATE = 100_000  # characters

_showing = Throttle(1)


class Progress:
    """What one wait tells, in its log and in an XCom, and keeps in the inbox for whoever goes on with it.

    It tells first when its ``with`` statement has lasted 2 s, and shows nothing after it but what :meth:`show_last`
    does.

    :param keeps_state: whether who goes on with the wait can go on from what has been gathered.
    """

    __slots__ = ("_gathering", "_keeps_state", "_over", "_shown", "_telling", "_told_at", "_trigger")

    def __init__(self, trigger: TaskTrigger, gathering: Gathering, *, keeps_state: bool) -> None:
        self._trigger = trigger
        self._gathering = gathering
        self._keeps_state = keeps_state
        self._told_at = float("-inf")
        self._shown: dict[str, Any] | None = None
        self._over = False
        self._telling: asyncio.TimerHandle | None = None

    def changed(self) -> None:
        """Tell soon, and at most every 10 s."""
        if self._telling is None:
            self._tell_in(max(0.0, self._told_at + _EVERY - time.monotonic()))

    def __enter__(self) -> Self:
        self._tell_in(_FIRST_AFTER)
        return self

    def __exit__(self, *_: object) -> None:
        """Show no more: another attempt may have begun to."""
        self._over = True
        if self._telling is not None:
            self._telling.cancel()

    async def show_last(self) -> None:
        """Show how far it came in the end, where something else is shown so far."""
        if self._shown is not None and self._shown != self._gathering.progress():
            await self._show()

    def _tell_in(self, seconds: float) -> None:
        self._telling = asyncio.get_running_loop().call_later(seconds, self._tell)

    def _tell(self) -> None:
        self._telling, self._told_at = None, time.monotonic()
        told = self._gathering.progress()
        self._trigger.log.info("Come: %s; missing: %s", _in_words(told["come"]), told["missing"])
        background.detach(self._keep_and_show())

    async def _keep_and_show(self) -> None:
        noted, state = self._gathering.progress(), self._gathering.state()
        if self._keeps_state and _is_small(state):
            noted["state"] = state
        if noted["come"]:
            await self._trigger.inbox.waits.save_progress(self._trigger.current.id, noted)
        # The triggerer serves one XCom at a time, 20 ms each: all waits together ask for one.
        with _showing.slot() as granted:
            await granted
            if not self._over:
                await self._show()

    async def _show(self) -> None:
        self._shown = self._gathering.progress()
        try:
            await self._trigger.push_xcom(PROGRESS, self._shown)
        except Exception as error:
            self._trigger.log.warning("The progress could not be shown: %s", type(error).__name__)


def _is_small(state: dict[str, Any]) -> bool:
    kept = sum(map(len, state["kept"].values()))
    return kept <= _MOST_KEPT and len(json.dumps(state)) <= _LARGEST_STATE


def _in_words(come: dict[str, int]) -> str:
    return (
        ", ".join(name if count == 1 else f"{name} ({count} times)" for name, count in come.items())
        or "nothing"
    )
