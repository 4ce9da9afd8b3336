"""Background work of a triggerer: announce its host, delete old rows, cancel external work, carry out requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from contextvars import Context
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

from deferrable_ops import settings
from deferrable_ops.deployment import this_process
from deferrable_ops.inbox import NO_RETRY_TIMEOUT, Inbox, use_inbox
from deferrable_ops.inbox.hosts import Component
from deferrable_ops.triggers.lifecycle import log_pipe
from deferrable_ops.triggers.lifecycle.cancellation import cancel_due_work
from deferrable_ops.triggers.lifecycle.requests import RequestRunner

log = logging.getLogger(__name__)

_CANCEL_INTERVAL = 60.0

_running: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[None]] = WeakKeyDictionary()
# References to the running tasks, because asyncio itself keeps no strong reference to a task.
_detached: set[asyncio.Task[None]] = set()


def start() -> None:
    """Start the background work of this event loop, unless it runs already.

    The background work keeps the inbox open until the event loop ends.
    """
    loop = asyncio.get_running_loop()
    if loop not in _running or _running[loop].done():
        # Airflow selects the log file by the context. The context is empty, because the background work outlives the
        # task whose trigger starts it.
        this_process.is_awaited = True
        _running[loop] = loop.create_task(_run(), name="deferrable-ops background", context=Context())
        if reason := log_pipe.install():
            log.debug("Log lines may block this triggerer, because its log is not buffered (%s)", reason)


def start_with_triggerer() -> None:
    """Let each triggerer process that this process forks start the background work at once.

    Otherwise, the background work would start with the first trigger of this library. Until then, the triggerer would
    carry out no request, for example to stop a supervisord. If this release of Airflow starts a triggerer in another
    way than the tested releases, nothing is changed.
    """
    from airflow.jobs import triggerer_job_runner

    runner: Any = getattr(triggerer_job_runner, "TriggerRunner", None)
    connect = getattr(runner, "init_comms", None)
    if not asyncio.iscoroutinefunction(connect) or hasattr(connect, "__wrapped__"):
        return

    @wraps(connect)
    async def connect_and_start(self: Any) -> None:
        await connect(self)
        start()

    runner.init_comms = connect_and_start


def detach(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in the background. The coroutine continues if the trigger that started it ends. Errors of the
    coroutine are logged.
    """
    task = asyncio.get_running_loop().create_task(_logged(work), name="deferrable-ops detached")
    _detached.add(task)
    task.add_done_callback(_detached.discard)


async def cancel_due(wait_id: str) -> None:
    """Cancel the external work of one wait, if the inbox contains a request to cancel this work, and the request is
    due.
    """
    async with use_inbox(retry_timeout=NO_RETRY_TIMEOUT) as inbox:
        await cancel_due_work(inbox, wait_id)


async def _run() -> None:
    # In parallel, because the inbox may not answer for a long time.
    reading = this_process.start_reading()
    async with use_inbox(retry_timeout=NO_RETRY_TIMEOUT) as inbox:
        await asyncio.gather(
            inbox.retention.run(),
            inbox.hosts.announce(Component.TRIGGERER),
            _act_for_deployment(inbox, reading),
            inbox.outages.run(),
            RequestRunner(inbox).run(),
        )


async def _act_for_deployment(inbox: Inbox, reading: Awaitable[str]) -> None:
    log.info("This triggerer belongs to deployment %s", await reading)
    team = settings.team()
    if team is not None and not settings.has_own_option("inbox_url", team):
        log.warning(
            "The team %s shares an inbox with other teams, so tasks of other teams can read the team's values and "
            "end the team's waits. To give the team an inbox of its own, set AIRFLOW__%s___DEFERRABLE_OPS__INBOX_URL",
            team,
            team.upper(),
        )
    while True:
        try:
            await inbox.owner.adopt_if_unowned()
            await cancel_due_work(inbox)
        except Exception:
            log.warning(
                "Could not cancel the external work of ended waits; retrying in a minute", exc_info=True
            )
        await asyncio.sleep(_CANCEL_INTERVAL)


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        log.warning(
            "A background job of a trigger failed; the outcome of the Airflow task stays the same",
            exc_info=True,
        )
