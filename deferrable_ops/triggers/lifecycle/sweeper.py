"""Settles the waits whose task ended while no triggerer ran. Only the API servers of the Airflow deployment that owns
the inbox settle such waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.waits.wait import WaitingAttempt
from deferrable_ops.triggers.lifecycle.cancellation import cancel_due_work

log = logging.getLogger(__name__)

_INTERVAL = 60.0
_WAITS_PER_PAGE = 500

EndedSource = Callable[[Sequence[WaitingAttempt]], Awaitable[list[WaitingAttempt]]]
"""A function that returns those of the given attempts that have ended."""


class Sweeper:
    """Finds waits whose attempt has ended in Airflow, settles them, and cancels the work whose cancellation is due.

    A wait whose task instance does not exist is not changed, because the wait may belong to another deployment of
    Airflow.

    :param find_ended: an async function that returns those of the given attempts that have ended in Airflow. It finds
        an attempt by the task instance's id and the try number.
    :param interval: seconds between two sweeps. All API servers together make one sweep per interval.
    """

    def __init__(self, inbox: Inbox, find_ended: EndedSource, *, interval: float = _INTERVAL) -> None:
        self._inbox = inbox
        self._find_ended = find_ended
        self._interval = interval
        self._problem: str | None = None

    async def run(self) -> None:
        """Sweep at once, and then once per interval, until cancelled.

        An error is logged and does not stop the sweeps.
        """
        while True:
            try:
                await self.sweep()
            # An asyncio task that raises SystemExit ends the API server.
            except (Exception, SystemExit):
                log.warning("Could not look for waits whose task has ended; retrying later", exc_info=True)
            await asyncio.sleep(self._interval)

    async def sweep(self) -> None:
        """Settle the waits of ended tasks, and cancel the external work whose cancellation is due.

        If an API server swept less than one interval ago, only cancel the work. If the inbox belongs to another
        deployment of Airflow, do nothing.
        """
        await self._inbox.owner.adopt_if_unowned()
        problem = await self._inbox.owner.problem(cancel=True)
        if problem is not None:
            if problem != self._problem:
                log.error("This API server does not end waits whose task has ended: %s", problem)
            self._problem = problem
            return
        self._problem = None
        if await self._inbox.database.try_lock("sweep", self._interval):
            await self._kill_ended()
        await cancel_due_work(self._inbox)

    async def _kill_ended(self) -> None:
        waiting = await self._inbox.waits.waiting()
        for start in range(0, len(waiting), _WAITS_PER_PAGE):
            ended = await self._find_ended(waiting[start : start + _WAITS_PER_PAGE])
            for attempt in ended:
                log.info(
                    "The task of wait %s has ended in Airflow, so the wait is ended too", attempt.wait_id
                )
            await self._inbox.waits.kill([attempt.wait_id for attempt in ended])
