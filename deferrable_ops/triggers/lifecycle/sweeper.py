"""Settles the waits whose task ended while no triggerer ran, and requests to stop supervisords whose DAG run is over.

Only the API servers of the Airflow deployment that owns the inbox do this work.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.requests import RequestKind, arguments_for
from deferrable_ops.inbox.waits.wait import WaitingAttempt
from deferrable_ops.triggers.lifecycle.cancellation import cancel_due_work

log = logging.getLogger(__name__)

_INTERVAL = 60.0
_WAITS_PER_PAGE = 500
# The API server never connects to the machine of a supervisord. Triggerers cancel the work of this feature.
_ONLY_IN_TRIGGERERS: Final = frozenset({"supervisor"})

EndedSource = Callable[[Sequence[WaitingAttempt]], Awaitable[list[WaitingAttempt]]]
"""A function that returns those of the given attempts that have ended."""

RunsSource = Callable[[Sequence[tuple[str, str]]], Awaitable[list[tuple[str, str]]]]
"""A function that returns those of the given DAG runs, pairs of a DAG id and a run id, that are over."""


class Sweeper:
    """Settles the waits whose task attempt has ended in Airflow, and cancels the external work whose cancellation is
    due.

    For a supervisord that should have been stopped at the end of its DAG run, the sweeper makes a request, which a
    triggerer carries out. The sweeper itself never connects to the machine of a supervisord.

    A wait whose task instance does not exist is not changed, because the wait may belong to another deployment of
    Airflow.

    :param find_ended: an async function that returns those of the given attempts that have ended in Airflow. The
        function finds an attempt by the task instance's id and the try number.
    :param find_over: an async function that returns those of the given DAG runs that are over. A DAG run is over if
        Airflow runs no task of this DAG run, and no other run of the same DAG is queued or running.
    :param interval: seconds between two sweeps. All API servers together make one sweep per interval.
    """

    def __init__(
        self, inbox: Inbox, find_ended: EndedSource, find_over: RunsSource, *, interval: float = _INTERVAL
    ) -> None:
        self._inbox = inbox
        self._find_ended = find_ended
        self._find_over = find_over
        self._interval = interval
        self._problem: str | None = None
        self._logged: set[str] = set()

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

        If an API server has made a sweep less than one interval ago, only cancel the work. If the inbox belongs to
        another deployment of Airflow, do nothing.
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
            await self._request_stops()
        await cancel_due_work(self._inbox, without_features=_ONLY_IN_TRIGGERERS)

    async def _request_stops(self) -> None:
        """Request the stop of each supervisord whose DAG run is over, unless the supervisord must keep running."""
        found = [one for one in await self._inbox.daemons.all() if one.details.get("stop_on_exit")]
        if not found:
            return
        over = await self._find_over(sorted({(one.dag_id, one.run_id) for one in found}))
        for daemon in found:
            if (daemon.dag_id, daemon.run_id) in over:
                actor = f"API server {socket.gethostname()}"
                request = await self._inbox.requests.add(
                    RequestKind.STOP, daemon.name, arguments_for(daemon), actor
                )
                if request.id not in self._logged:
                    self._logged.add(request.id)
                    log.warning(
                        "The DAG run %s of %s is over, but its supervisord %s was not stopped; a triggerer that "
                        "reaches the machine will stop it (request %s)",
                        daemon.run_id,
                        daemon.dag_id,
                        daemon.name,
                        request.id,
                    )

    async def _kill_ended(self) -> None:
        waiting = await self._inbox.waits.waiting()
        for start in range(0, len(waiting), _WAITS_PER_PAGE):
            ended = await self._find_ended(waiting[start : start + _WAITS_PER_PAGE])
            for attempt in ended:
                log.info(
                    "The task of wait %s has ended in Airflow, so the wait is ended too", attempt.wait_id
                )
            await self._inbox.waits.kill([attempt.wait_id for attempt in ended])
