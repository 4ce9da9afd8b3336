"""One watcher per process: it learns which waits changed, and wakes those that are waited for here.

Its cost at idle does not grow with the number of waits: it asks what changed, never how each wait is doing. It also
ends waits whose deadline passed or whose beats stopped, with one statement for all of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Self

from deferrable_ops.exceptions import InboxUnavailable
from deferrable_ops.inbox.changes import Cursor, Told, keep_running, read_changes, signal_for
from deferrable_ops.inbox.database.database import Database
from deferrable_ops.inbox.waits.endpoints import Endpoints
from deferrable_ops.inbox.waits.wait import Wait
from deferrable_ops.inbox.waits.waits import Waits

log = logging.getLogger(__name__)

_EXPIRE_EVERY = 1.0
_JUST_AFTER = 0.01
_AFTER_TROUBLE = 1.0
_OUTAGE_AFTER = 3.0  # seconds without a look at the deadlines, after which beats get one full interval again


class Subscription:
    """The changes of one wait, while its ``with`` statement lasts."""

    # Whoever else follows the wait in this process is behind it: a collection for each of thousands would be large.
    __slots__ = ("_behind", "_future", "_subscriptions", "_wait", "_wait_id", "_woken")

    def __init__(self, subscriptions: dict[str, Subscription], wait_id: str) -> None:
        self._subscriptions = subscriptions
        self._behind: Subscription | None = None
        self._wait_id = wait_id
        self._wait: Wait | None = None
        self._woken = False
        self._future: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        self._behind = self._subscriptions.get(self._wait_id)
        self._subscriptions[self._wait_id] = self
        return self

    def __exit__(self, *_: object) -> None:
        first = self._subscriptions[self._wait_id]
        if first is not self:
            before = next(one for one in first.all_of_its_wait() if one._behind is self)
            before._behind = self._behind
        elif self._behind is not None:
            self._subscriptions[self._wait_id] = self._behind
        else:
            del self._subscriptions[self._wait_id]

    def all_of_its_wait(self) -> Iterator[Subscription]:
        """Return this one and those behind it."""
        one: Subscription | None = self
        while one is not None:
            yield one
            one = one._behind

    async def next(self) -> Wait:
        """Return the wait as it stands after its next change."""
        while (wait := self.take()) is None:
            await self.next_change()
        return wait

    def next_change(self) -> asyncio.Future[None]:
        """Return what is done once the wait has changed or :meth:`wake` was called, since the last :meth:`take`."""
        # No coroutine: there are thousands of waits, and that would cost each of them 0.2 kB.
        self._future = asyncio.get_running_loop().create_future()
        if self._woken or self._wait is not None:
            self._go_on()
        return self._future

    def take(self) -> Wait | None:
        """Return the wait as it stands, if it has changed since the last call."""
        wait, self._wait, self._woken = self._wait, None, False
        return wait

    def deliver(self, wait: Wait) -> None:
        """Hand over the wait as it stands."""
        self._wait = wait
        self._go_on()

    def wake(self) -> None:
        """Complete :meth:`next_change` although the wait has not changed, now or at its next call."""
        self._woken = True
        self._go_on()

    def _go_on(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


class Watcher:
    """Wakes the waits of this process that have changed."""

    def __init__(self, database: Database, waits: Waits, endpoints: Endpoints) -> None:
        self._database = database
        self._waits = waits
        self._endpoints = endpoints
        self._subscriptions: dict[str, Subscription] = {}
        self._told: set[str] = set()
        self._look = asyncio.Event()
        self._look_everywhere = True
        self._tasks: list[asyncio.Task[None]] = []
        self.on_events: Told = lambda sources: None
        """Called with the sources of new events; None when only a look can tell."""
        self._signal = signal_for(database, self._on_change, self._on_events)
        database.on_commit = self._on_change

    def subscribe(self, wait_id: str) -> Subscription:
        """Follow a wait. Subscribe before reading it, so that no change falls in between."""
        self.start()
        return Subscription(self._subscriptions, wait_id)

    @property
    def watched(self) -> Iterable[str]:
        """The ids of the waits that are waited for in this process."""
        return self._subscriptions.keys()

    @property
    def sweep_every(self) -> float:
        """Seconds between two looks for what a lost signal would have told."""
        return self._signal.sweep_every

    async def close(self) -> None:
        """Stop watching."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def start(self) -> None:
        """Begin to watch, unless that is under way."""
        if not self._tasks:
            self._tasks = [
                self._database.spawn(keep_running(self._signal), "signal"),
                self._database.spawn(self._wake_the_changed(), "watcher"),
                self._database.spawn(self._end_the_overdue(), "deadlines"),
            ]

    def _on_change(self, changed: set[str] | None) -> None:
        if changed is None:
            self._look_everywhere = True
        else:
            mine = changed & self._subscriptions.keys()
            if not mine:
                return
            self._told |= mine
        self._look.set()

    def _on_events(self, sources: set[str] | None) -> None:
        self.on_events(sources)

    async def _wake_the_changed(self) -> None:
        cursor: Cursor | None = None
        swept_at = 0.0
        while True:
            try:
                await self._tell(self._take_told())
                if self._look_everywhere or time.monotonic() - swept_at >= self._signal.sweep_every:
                    self._look_everywhere, swept_at = False, time.monotonic()
                    changed, cursor = await read_changes(self._database, cursor)
                    await self._tell([*self._subscriptions] if changed is None else changed)
            except Exception as error:
                _log_trouble("Waits cannot be watched", error)
                cursor, self._look_everywhere = None, True
                await asyncio.sleep(_AFTER_TROUBLE)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.1, swept_at + self._signal.sweep_every - time.monotonic())):
                    await self._look.wait()
            self._look.clear()

    def _take_told(self) -> list[str]:
        told, self._told = self._told, set()
        return list(told)

    async def _tell(self, wait_ids: list[str]) -> None:
        mine = [wait_id for wait_id in wait_ids if wait_id in self._subscriptions]
        if not mine:
            return
        for wait in await self._waits.get_many(mine):
            if (first := self._subscriptions.get(wait.id)) is not None:
                for subscription in first.all_of_its_wait():
                    subscription.deliver(wait)

    async def _end_the_overdue(self) -> None:
        up_since = looked_at = float("-inf")
        while True:
            pause = _EXPIRE_EVERY
            try:
                now = await self._database.now()
                if now - looked_at > _OUTAGE_AFTER:
                    up_since = now
                looked_at = now
                left = await self._waits.expire(await self._beats_since(up_since))
                pause = min(pause, left + _JUST_AFTER)  # Airflow's own deadline comes soon after ours
            except Exception as error:
                _log_trouble("Deadlines cannot be watched", error)
                looked_at = float("-inf")
            await asyncio.sleep(pause)

    async def _beats_since(self, up_since: float) -> float | None:
        endpoint_since = await self._endpoints.up_since()
        return None if endpoint_since is None else max(up_since, endpoint_since)


def _log_trouble(what: str, error: Exception) -> None:
    log.warning("%s: %s", what, error, exc_info=not isinstance(error, InboxUnavailable))
