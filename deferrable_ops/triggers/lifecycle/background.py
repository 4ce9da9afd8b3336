"""Background work of a triggerer: announce its host, delete old rows, find ended tasks, cancel their external work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextvars import Context
from typing import Any
from weakref import WeakKeyDictionary

from deferrable_ops.inbox import NO_RETRY_TIMEOUT, Inbox, use_inbox
from deferrable_ops.inbox.hosts import Component
from deferrable_ops.supervisor_calls import warm_up
from deferrable_ops.triggers.lifecycle import log_pipe
from deferrable_ops.triggers.lifecycle.cancellation import SWEEP_EVERY, cancel_due_work, sweep
from deferrable_ops.triggers.lifecycle.task_states import StatesSource, states_from_supervisor

log = logging.getLogger(__name__)

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
        _running[loop] = loop.create_task(_run(), name="deferrable-ops background", context=Context())
        detach(warm_up())
        if reason := log_pipe.install():
            log.debug("This triggerer's log is not buffered, so writing to it may block: %s", reason)


def detach(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in the background, also after the trigger has ended. Errors of the coroutine are logged."""
    task = asyncio.get_running_loop().create_task(_logged(work), name="deferrable-ops detached")
    _detached.add(task)
    task.add_done_callback(_detached.discard)


async def cancel_due(wait_id: str) -> None:
    """Cancel the external work of one wait, if the inbox contains a due request to cancel this work."""
    async with use_inbox(retry_timeout=NO_RETRY_TIMEOUT) as inbox:
        await cancel_due_work(inbox, wait_id)


async def sweep_forever(inbox: Inbox, source: StatesSource) -> None:
    """Call :func:`sweep` at once, and then once a minute until this coroutine is cancelled."""
    while True:
        try:
            await sweep(inbox, source)
        except Exception:
            log.warning("Could not look for waits whose task has ended; retrying in a minute", exc_info=True)
        await asyncio.sleep(SWEEP_EVERY)


async def _run() -> None:
    async with use_inbox(retry_timeout=NO_RETRY_TIMEOUT) as inbox:
        await asyncio.gather(
            inbox.retention.run(),
            inbox.hosts.announce(Component.TRIGGERER),
            sweep_forever(inbox, states_from_supervisor),
        )


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        log.warning("A background task of a trigger failed", exc_info=True)
