"""What a triggerer does for all its waits: pruning, noticing tasks that ended unseen, and stopping their work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextvars import Context
from typing import Any
from weakref import WeakKeyDictionary

from deferrable_ops.inbox import NO_RETRY_TIMEOUT, Inbox, use_inbox
from deferrable_ops.triggers.lifecycle.cancellation import SWEEP_EVERY, stop_due_work, sweep
from deferrable_ops.triggers.lifecycle.task_states import AskStates, ask_supervisor

log = logging.getLogger(__name__)

_running: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[None]] = WeakKeyDictionary()
_detached: set[asyncio.Task[None]] = set()  # asyncio itself keeps no strong reference to a task


def start() -> None:
    """Start the chores of this event loop, unless they run. They keep the inbox open until the loop ends."""
    loop = asyncio.get_running_loop()
    if loop not in _running or _running[loop].done():
        # In a context of their own: by its context Airflow tells whose log is written to, and they outlive that task.
        _running[loop] = loop.create_task(_run(), name="deferrable-ops chores", context=Context())


def detach(work: Coroutine[Any, Any, None]) -> None:
    """Run something that outlives the trigger which asks for it."""
    task = asyncio.get_running_loop().create_task(_logged(work), name="deferrable-ops detached")
    _detached.add(task)
    task.add_done_callback(_detached.discard)


async def cancel_due(wait_id: str) -> None:
    """Stop the outside work of one wait, if that is due."""
    async with use_inbox(retry_timeout=NO_RETRY_TIMEOUT) as inbox:
        await stop_due_work(inbox, wait_id)


async def sweep_forever(inbox: Inbox, ask: AskStates) -> None:
    """Sweep at once and every minute, until cancelled."""
    while True:
        try:
            await sweep(inbox, ask)
        except Exception:
            log.warning("Waits whose task has ended could not be looked for", exc_info=True)
        await asyncio.sleep(SWEEP_EVERY)


async def _run() -> None:
    async with use_inbox(retry_timeout=NO_RETRY_TIMEOUT) as inbox:
        await asyncio.gather(inbox.retention.run(), sweep_forever(inbox, ask_supervisor))


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        log.warning("Work that was left to the background failed", exc_info=True)
