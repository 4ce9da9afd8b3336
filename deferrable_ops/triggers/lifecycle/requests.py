"""Carries out the requests of the inbox that this triggerer reaches, for example to stop a supervisord on its host."""

from __future__ import annotations

import asyncio
import logging
import os
import pkgutil
from collections.abc import Awaitable, Callable
from typing import Final

from deferrable_ops import settings
from deferrable_ops.exceptions import DeferrableOpsError, InputError
from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.requests import ClaimedRequest, Request, RequestKind, RequestLost

log = logging.getLogger(__name__)

Handler = Callable[[Inbox, ClaimedRequest], Awaitable[str]]
"""A function that carries out a request, and returns what it did. If it raises an error, it is called again later."""

_SUPERVISOR: Final = "deferrable_ops.triggers.supervisor.requests"
# The names of functions, because importing them imports the clients of their feature.
_HANDLERS: Final = {
    RequestKind.STOP.value: f"{_SUPERVISOR}:stop",
    RequestKind.RESTART.value: f"{_SUPERVISOR}:restart",
}
_INTERVAL: Final = 5.0
_MAX_AT_ONCE: Final = 16


class RequestFailed(DeferrableOpsError):
    """Raised if a request cannot be carried out, and another attempt would fail for the same reason."""


class RequestRunner:
    """Carries out requests in the background, at most 16 at once.

    :param interval: seconds between two searches for requests.
    """

    def __init__(self, inbox: Inbox, *, interval: float = _INTERVAL) -> None:
        self._inbox = inbox
        self._interval = interval
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Look for requests in the inbox once per interval, and carry out the requests that this triggerer reaches.
        This method runs until it is cancelled.
        """
        try:
            while True:
                await self._start_due()
                await asyncio.sleep(self._interval)
        finally:
            for task in self._running:
                task.cancel()

    async def _start_due(self) -> None:
        found = True
        while found and len(self._running) < _MAX_AT_ONCE:
            started: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(self._carry_out_next(started), name="deferrable-ops request")
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            found = await started

    async def _carry_out_next(self, started: asyncio.Future[bool]) -> None:
        """Claim the next request that is due, and carry out the request.

        :param started: a future. This method sets the future's result to True if it has claimed a request, otherwise to
            False.
        """
        try:
            async with self._inbox.requests.claim(reaches) as claimed:
                started.set_result(claimed is not None)
                if claimed is not None:
                    await carry_out(self._inbox, claimed)
        except Exception:
            log.warning("Could not carry out a request of the inbox; retrying later", exc_info=True)
        finally:
            if not started.done():
                started.set_result(False)


def reaches(request: Request) -> bool:
    """Return whether this triggerer can carry out a request: it knows the kind, and reaches the target's machine."""
    arguments = request.arguments
    is_near = arguments.get("host") in (None, os.uname().nodename)
    return request.kind in _HANDLERS and is_near and arguments.get("team") == settings.team()


async def carry_out(inbox: Inbox, claimed: ClaimedRequest) -> None:
    """Carry out a claimed request, and record the answer. If the attempt fails, the request is due again later."""
    request = claimed.request
    what = f"the request {request.id} ({request.kind} {request.target}, made by {request.actor})"
    try:
        handler: Handler = await asyncio.to_thread(pkgutil.resolve_name, _HANDLERS[request.kind])
        text = await handler(inbox, claimed)
    except RequestLost as lost:
        log.info("Gave up %s: %s", what, lost)
    except (RequestFailed, InputError) as failed:
        log.error("Could not carry out %s: %s", what, failed)
        await claimed.finish(str(failed), failed=True)
    # An asyncio task that raises SystemExit ends the triggerer process.
    except (Exception, SystemExit) as error:
        reason = str(error) or type(error).__name__
        pause = await claimed.retry_later(reason)
        log.warning(
            "Could not carry out %s: %s; %s",
            what,
            reason,
            "no further attempt is made" if pause is None else f"retrying in {pause:g} s",
        )
    else:
        await claimed.finish(text)
        log.info("Carried out %s: %s", what, text)
