"""Background jobs that the endpoint runs while it handles requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

from deferrable_ops.backoff import Backoff
from deferrable_ops.endpoint.resources import LazyInbox
from deferrable_ops.exceptions import DeferrableOpsError
from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.hosts import Component

log = logging.getLogger(__name__)

BackgroundJob = Callable[[Inbox], Awaitable[None]]
"""A background job, which runs until it is cancelled or has nothing more to do."""

_FIRST_BACKOFF, _MAX_BACKOFF = 1.0, 30.0


async def announce(inbox: Inbox) -> None:
    """Record once a second in the inbox that this endpoint is running, as long as any waiting task expects heartbeats.

    While no endpoint is running, no task fails because of missing heartbeats.
    """
    await inbox.endpoints.announce()


def announce_host(component: Component) -> BackgroundJob:
    """Return a job that records in the inbox, once a minute, that `component` runs on this host.

    :param component: a component of Airflow, or an endpoint.
    """

    async def announce_host(inbox: Inbox) -> None:
        await inbox.hosts.announce(component)

    return announce_host


async def prune(inbox: Inbox) -> None:
    """Every hour, delete the rows of the inbox whose retention time is over."""
    await inbox.retention.run()


@asynccontextmanager
async def run_in_background(
    jobs: Iterable[BackgroundJob], inbox: LazyInbox, *, first_backoff: float = _FIRST_BACKOFF
) -> AsyncIterator[None]:
    """Run jobs for the duration of a ``with`` block, and close the inbox at the end of the block.

    Errors of jobs are logged and not raised, because a raised error would stop the whole API server.

    :param first_backoff: the upper limit of the random pause before a job is restarted after its first error, in
        seconds. This limit doubles with each further error, up to 30 s.
    """
    tasks = [
        asyncio.create_task(_run_with_retries(job, inbox, first_backoff), name=f"deferrable-ops {_name(job)}")
        for job in jobs
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
            log.exception("Could not close the inbox while the endpoint stopped; no action is needed")


async def _run_with_retries(job: BackgroundJob, inbox: LazyInbox, first_backoff: float) -> None:
    backoff = Backoff(first_pause=first_backoff, longest_pause=_MAX_BACKOFF)
    while True:
        pause = backoff.failed()
        try:
            await job(await inbox.get())
            return
        except DeferrableOpsError as error:
            log.warning("Background job %s failed: %s; retrying in %.1f s", _name(job), error, pause)
        # An asyncio task that raises SystemExit ends the server process.
        except (Exception, SystemExit):
            log.exception("Background job %s failed; retrying in %.1f s", _name(job), pause)
        await asyncio.sleep(pause)


def _name(job: BackgroundJob) -> str:
    return getattr(job, "__name__", type(job).__name__)
