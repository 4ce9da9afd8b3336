"""The endpoint's chores, which run beside its requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

from deferrable_ops.endpoint.lazy_inbox import LazyInbox
from deferrable_ops.exceptions import DeferrableOpsError
from deferrable_ops.inbox import Inbox

log = logging.getLogger(__name__)

Chore = Callable[[Inbox], Awaitable[None]]
"""Runs until it is cancelled; may return when there is nothing more to do."""

_PAUSE_FIRST, _PAUSE_MOST = 1.0, 30.0


async def announce(inbox: Inbox) -> None:
    """Say that this endpoint is up, so that heartbeats are expected."""
    await inbox.endpoints.announce()


async def prune(inbox: Inbox) -> None:
    """Prune the inbox every hour."""
    await inbox.retention.run()


@asynccontextmanager
async def running(chores: Iterable[Chore], inbox: LazyInbox) -> AsyncIterator[None]:
    """Run the chores meanwhile. Neither they nor their end raise: that would stop the whole API server."""
    tasks = [
        asyncio.create_task(_keep_running(chore, inbox), name=f"deferrable-ops {_name(chore)}")
        for chore in chores
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await inbox.close()
        except Exception:
            log.exception("The inbox could not be closed")


async def _keep_running(chore: Chore, inbox: LazyInbox) -> None:
    pause = _PAUSE_FIRST
    while True:
        try:
            await chore(await inbox.get())
            return
        except DeferrableOpsError as error:
            log.warning("%s cannot run now: %s", _name(chore), error)
        except Exception:
            log.exception("%s failed and is started again", _name(chore))
        await asyncio.sleep(pause)
        pause = min(2 * pause, _PAUSE_MOST)


def _name(chore: Chore) -> str:
    return getattr(chore, "__name__", type(chore).__name__)
