"""Notifies the subscriptions to a wait when its row in the table `waits` has changed. Each process has one watcher.

While no wait changes, the load of the watcher does not depend on the number of waits, because the watcher reads only
the waits that have changed. The watcher also settles the waits whose deadline has passed or whose heartbeats are
missing. It finds these waits with one query, and not with one query for each wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Self

from deferrable_ops.exceptions import InboxUnavailable
from deferrable_ops.inbox.changes import ChangeListener, Cursor, create_signal, keep_running, read_changes
from deferrable_ops.inbox.database.database import Database
from deferrable_ops.inbox.waits.endpoints import Endpoints
from deferrable_ops.inbox.waits.wait import Wait
from deferrable_ops.inbox.waits.waits import Waits

log = logging.getLogger(__name__)

_EXPIRE_INTERVAL = 1.0
_DEADLINE_MARGIN = 0.01
# A deadline that can pause is paused if no process has marked its wait as seen for 15 s.
_SEEN_INTERVAL = 5.0
_RETRY_INTERVAL = 1.0
# If deadlines were not checked for this long, every wait gets its full heartbeat timeout again.
_OUTAGE_SECONDS = 3.0


class Subscription:
    """Receives the changes of one wait's row during a ``with`` block."""

    # Subscriptions to the same wait form a linked list. A Python list for each wait would waste memory.
    __slots__ = ("_future", "_next", "_subscriptions", "_wait", "_wait_id", "_woken", "is_lost")

    def __init__(self, subscriptions: dict[str, Subscription], wait_id: str) -> None:
        self._subscriptions = subscriptions
        self._next: Subscription | None = None
        self._wait_id = wait_id
        self._wait: Wait | None = None
        self._woken = False
        self._future: asyncio.Future[None] | None = None
        self.is_lost = False
        """Whether the watcher did not find the wait in the inbox. :meth:`take` sets this attribute to False."""

    def __enter__(self) -> Self:
        self._next = self._subscriptions.get(self._wait_id)
        self._subscriptions[self._wait_id] = self
        return self

    def __exit__(self, *_: object) -> None:
        first = self._subscriptions[self._wait_id]
        if first is not self:
            previous = next(one for one in first.chain() if one._next is self)
            previous._next = self._next
        elif self._next is not None:
            self._subscriptions[self._wait_id] = self._next
        else:
            del self._subscriptions[self._wait_id]

    def chain(self) -> Iterator[Subscription]:
        """Yield this subscription and the subscriptions after it in the linked list of subscriptions to one wait."""
        one: Subscription | None = self
        while one is not None:
            yield one
            one = one._next

    async def next(self) -> Wait:
        """Return the wait's row as soon as the row has changed since the last call of this method or :meth:`take`."""
        while (wait := self.take()) is None:
            await self.next_change()
        return wait

    def next_change(self) -> asyncio.Future[None]:
        """Return a future that completes when the wait changes or :meth:`wake` is called.

        The returned future is already complete if the wait has changed since the last call of :meth:`take`.
        """
        # Not a coroutine, which would cost 0.2 kB for each of thousands of waits.
        self._future = asyncio.get_running_loop().create_future()
        if self._woken or self.is_lost or self._wait is not None:
            self._complete()
        return self._future

    def take(self) -> Wait | None:
        """Return the wait's current row, or None if the wait has not changed since the last call of this method."""
        wait, self._wait, self._woken, self.is_lost = self._wait, None, False, False
        return wait

    def deliver(self, wait: Wait) -> None:
        """Store the wait's current row in the subscription. The watcher calls this method."""
        self._wait = wait
        self._complete()

    def lose(self) -> None:
        """Record that the inbox does not contain the subscription's wait. The watcher calls this method."""
        self.is_lost = True
        self._complete()

    def wake(self) -> None:
        """Complete the current future of :meth:`next_change`, although the wait has not changed.

        Until :meth:`take` is called, each new future of :meth:`next_change` is complete at once.
        """
        self._woken = True
        self._complete()

    def _complete(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


class Watcher:
    """Delivers changed waits to the subscriptions of this process, and settles the waits whose deadline has passed.

    :param expire_interval: the longest time between two searches for waits whose deadline has passed, in seconds.
    :param retry_interval: after a failed read of the changed waits, the watcher reads again after this many seconds.
    """

    def __init__(
        self,
        database: Database,
        waits: Waits,
        endpoints: Endpoints,
        *,
        expire_interval: float = _EXPIRE_INTERVAL,
        retry_interval: float = _RETRY_INTERVAL,
    ) -> None:
        self._database = database
        self._waits = waits
        self._endpoints = endpoints
        self._expire_interval = expire_interval
        self._retry_interval = retry_interval
        self._subscriptions: dict[str, Subscription] = {}
        self._changed: set[str] = set()
        self._wake = asyncio.Event()
        self._sweep_now = True
        self._tasks: list[asyncio.Task[None]] = []
        self.on_events: ChangeListener = lambda sources: None
        """A function that is called with the sources of new events, or with None if the sources are unknown."""
        self._signal = create_signal(database, self._on_change, self._on_events)
        database.on_commit = self._on_change

    def subscribe(self, wait_id: str) -> Subscription:
        """Return a subscription to the changes of a wait.

        Enter the subscription's ``with`` block before you read the wait, so that no change is missed.
        """
        self.start()
        return Subscription(self._subscriptions, wait_id)

    @property
    def watched(self) -> Iterable[str]:
        """The ids of the waits to which this process has subscriptions."""
        return self._subscriptions.keys()

    @property
    def sweep_interval(self) -> float:
        """Seconds between two queries for changed waits, which find the changes that no signal has announced."""
        return self._signal.sweep_interval

    async def close(self) -> None:
        """Stop the background tasks of the watcher."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def start(self) -> None:
        """Start the watcher if it is not running."""
        if not self._tasks:
            self._tasks = [
                self._database.spawn(keep_running(self._signal), "signal"),
                self._database.spawn(self._deliver_changes(), "watcher"),
                self._database.spawn(self._expire_overdue(), "deadlines"),
            ]

    def _on_change(self, changed: set[str] | None) -> None:
        if changed is None:
            self._sweep_now = True
        else:
            mine = changed & self._subscriptions.keys()
            if not mine:
                return
            self._changed |= mine
        self._wake.set()

    def _on_events(self, sources: set[str] | None) -> None:
        self.on_events(sources)

    async def _deliver_changes(self) -> None:
        cursor: Cursor | None = None
        swept_at, interrupted_at = 0.0, self._database.interrupted_at
        while True:
            try:
                await self._deliver(self._take_changed())
                if self._sweep_now or time.monotonic() - swept_at >= self._signal.sweep_interval:
                    self._sweep_now, swept_at = False, time.monotonic()
                    if self._database.interrupted_at > interrupted_at:
                        # The inbox may have been restored from a backup, whose versions are lower.
                        cursor, interrupted_at = None, self._database.interrupted_at
                    changed, cursor = await read_changes(self._database, cursor)
                    await self._deliver([*self._subscriptions] if changed is None else changed)
            except Exception as error:
                _log_error("Cannot read from the inbox which waits have changed; retrying", error)
                cursor, self._sweep_now = None, True
                await asyncio.sleep(self._retry_interval)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(
                    max(0.1, swept_at + self._signal.sweep_interval - time.monotonic())
                ):
                    await self._wake.wait()
            self._wake.clear()

    def _take_changed(self) -> list[str]:
        changed, self._changed = self._changed, set()
        return list(changed)

    async def _deliver(self, wait_ids: list[str]) -> None:
        mine = [wait_id for wait_id in wait_ids if wait_id in self._subscriptions]
        if not mine:
            return
        found = await self._waits.get_many(mine)
        for wait in found:
            for subscription in self._subscriptions_to(wait.id):
                subscription.deliver(wait)
        if len(found) < len(mine):
            # The inbox was lost or restored from an older backup, or a wait is not registered yet.
            for wait_id in await self._waits.missing({*mine} - {wait.id for wait in found}):
                for subscription in self._subscriptions_to(wait_id):
                    subscription.lose()

    def _subscriptions_to(self, wait_id: str) -> Iterator[Subscription]:
        first = self._subscriptions.get(wait_id)
        return iter(()) if first is None else first.chain()

    async def _expire_overdue(self) -> None:
        up_since = checked_at = seen_at = float("-inf")
        while True:
            pause = self._expire_interval
            try:
                now = await self._database.now()
                if now - checked_at > _OUTAGE_SECONDS:
                    up_since = now
                checked_at = now
                if self._subscriptions and now - seen_at >= _SEEN_INTERVAL:
                    await self._waits.mark_seen(self._subscriptions.keys())
                    seen_at = now
                left = await self._waits.expire(await self._beats_since(up_since))
                # Expire on time, because Airflow's own deadline comes soon after the wait's deadline.
                pause = min(pause, left + _DEADLINE_MARGIN)
            except Exception as error:
                _log_error(
                    "Cannot check in the inbox which waits have reached their deadline; retrying", error
                )
                checked_at = float("-inf")
            await asyncio.sleep(pause)

    async def _beats_since(self, up_since: float) -> float | None:
        endpoint_since = await self._endpoints.up_since()
        return None if endpoint_since is None else max(up_since, endpoint_since)


def _log_error(what: str, error: Exception) -> None:
    log.warning("%s: %s", what, error, exc_info=not isinstance(error, InboxUnavailable))
