"""Delivers events to the followers in this process, in commit order.

A follower that has received all stored events is live: it receives each new event when the feed reads the event. The
feed reads each new event once for all live followers. A new follower starts at its own time or event number, so it
must first catch up with the stored events. Followers that are behind catch up together: one page of events is
delivered to all followers that need these events. One asyncio task serves the live followers and the followers that
are behind, one group after the other, so no event is missed or delivered twice. A live follower with a full buffer
falls behind again, and does not delay the other followers. While no event arrives, the feed queries only the highest
event number, for any number of followers.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Self

from deferrable_ops.exceptions import InboxUnavailable
from deferrable_ops.inbox.database.database import Database
from deferrable_ops.inbox.events.events import Events, StoredEvent
from deferrable_ops.inbox.watcher import Watcher

log = logging.getLogger(__name__)

_EVENTS_PER_PAGE = 200
_MAX_PENDING = 1_000
_RETRY_INTERVAL = 1.0


class Follower:
    """A follower receives the events of some sources, for the duration of a ``with`` statement.

    :ivar sources: the sources whose events the follower receives, without duplicates.
    :ivar since: a time in seconds since the epoch. The follower does not receive events with an earlier time.
    :ivar position: the event number up to which the follower has received all its events; None before the follower has
        started.
    :ivar is_live: whether the follower has caught up, and receives each new event when the feed reads the event.
    """

    __slots__ = ("_feed", "_future", "_pending", "after", "is_live", "position", "since", "sources")

    def __init__(self, feed: Feed, sources: Iterable[str], since: float, after: int) -> None:
        self._feed = feed
        self._pending: list[StoredEvent] = []
        self._future: asyncio.Future[None] | None = None
        self.sources = tuple(set(sources))
        self.since = since
        self.after = after
        self.position: int | None = None
        self.is_live = False

    def __enter__(self) -> Self:
        self._feed.enter(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._feed.leave(self)

    def go_live(self) -> None:
        """Record that the follower has received all stored events. The feed calls this method."""
        self.is_live = True

    @property
    def upto(self) -> int:
        """The event number up to which the follower has received all its events; 0 before the follower has started."""
        return self._feed.position if self.is_live else self.position or 0

    @property
    def has_room(self) -> bool:
        """True if the follower's buffer is not full."""
        return len(self._pending) < self._feed.max_pending

    async def next(self) -> list[StoredEvent]:
        """Wait for at least one event, and return all events since the last call, in commit order."""
        while not self._pending:
            self._future = asyncio.get_running_loop().create_future()
            try:
                await self._future
            finally:
                self._future = None
        taken, self._pending = self._pending, []
        if not self.is_live:
            self._feed.wake()
        return taken

    def offer(self, event: StoredEvent) -> bool:
        """Store an event in the follower's buffer, unless the follower already received the event.

        Return False if the buffer is full.
        """
        if self.position is None or event.number <= self.position:
            return True
        if not self.has_room:
            return False
        self.position = event.number
        if event.time >= self.since:
            self._pending.append(event)
            if self._future is not None and not self._future.done():
                self._future.set_result(None)
        return True


class Feed:
    """Reads new events, and delivers them to the followers in this process.

    :param events_per_page: the maximum number of events that one query reads.
    :param max_pending: the maximum number of events in a follower's buffer.
    :param retry_interval: how many seconds after a failed read the feed tries to read events again.
    """

    def __init__(
        self,
        database: Database,
        events: Events,
        watcher: Watcher,
        *,
        events_per_page: int = _EVENTS_PER_PAGE,
        max_pending: int = _MAX_PENDING,
        retry_interval: float = _RETRY_INTERVAL,
    ) -> None:
        self._database = database
        self._events = events
        self._watcher = watcher
        self._events_per_page = events_per_page
        self.max_pending = max_pending
        self._retry_interval = retry_interval
        self._followers: dict[str, dict[Follower, None]] = {}
        self._live_sources: Counter[str] = Counter()
        # The followers that are behind, in the order in which they fell behind.
        self._behind: dict[Follower, None] = {}
        self._position = 0
        self._serve_longest_waiting = True
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.route: Callable[[StoredEvent], Iterable[Follower]] = self._followers_of_source
        """A function that returns the followers that may need an event. Only these followers receive the event. This
        function can be replaced, for example by an index of the values that the followers wait for.
        """
        events.on_append = watcher.on_events = self._on_events

    @property
    def position(self) -> int:
        """The event number up to which the followers that are not behind have received all their events."""
        return self._position

    def follow(self, sources: Collection[str], *, since: float | None = None, after: int = 0) -> Follower:
        """Return a follower of the given sources, which also receives the events that are already stored.

        :param since: a time in seconds since the epoch. The follower does not receive events with an earlier time.
        :param after: an event number. The follower receives only events with a higher number. To receive only future
            events, pass the number of the newest event.
        """
        return Follower(self, sources, -math.inf if since is None else since, after)

    def enter(self, follower: Follower) -> None:
        """Start delivering events to a follower."""
        for source in follower.sources:
            self._followers.setdefault(source, {})[follower] = None
        self._behind[follower] = None
        self._watcher.start()
        if self._task is None:
            self._task = self._database.spawn(self._run(), "feed")
        self.wake()

    def leave(self, follower: Follower) -> None:
        """Stop delivering events to a follower."""
        for source in follower.sources:
            of_source = self._followers[source]
            del of_source[follower]
            if not of_source:
                del self._followers[source]
        if follower.is_live:
            follower.is_live = False
            self._live_sources -= Counter(follower.sources)
        else:
            del self._behind[follower]

    def wake(self) -> None:
        """Make the feed's asyncio task look for new events and for followers that are behind."""
        self._wake.set()

    async def close(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def _on_events(self, sources: Collection[str] | None) -> None:
        if sources is None or any(source in self._followers for source in sources):
            self.wake()

    def _followers_of_source(self, event: StoredEvent) -> Iterable[Follower]:
        return self._followers.get(event.source, ())

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                more = bool(self._followers) and await self._read()
            except Exception as error:
                expected = isinstance(error, InboxUnavailable)
                log.warning("Cannot read events; retrying: %s", error, exc_info=not expected)
                await asyncio.sleep(self._retry_interval)
                continue
            if not more:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._watcher.sweep_interval if self._followers else None):
                        await self._wake.wait()

    async def _read(self) -> bool:
        """Read one page for the followers that have caught up, and one page for the followers that are behind.

        :return: whether there may be more events to read.
        """
        newest = await self._events.newest()
        if newest < self._position:
            self._rewind(newest)
        more_for_live = await self._read_live(newest)
        return await self._catch_up(newest) or more_for_live

    def _rewind(self, newest: int) -> None:
        """Move the positions of the feed and of its followers back to `newest`.

        After a failover that lost commits, the database assigns the lost event numbers again.
        """
        log.warning(
            "The inbox's database has lost events, probably in a failover. The highest event number was %d and is "
            "%d now. If a task still waits for a lost event, send this event again",
            self._position,
            newest,
        )
        self._position = newest
        for followers in self._followers.values():
            for follower in followers:
                if follower.position is not None:
                    follower.position = min(follower.position, newest)

    async def _read_live(self, newest: int) -> bool:
        page: list[StoredEvent] = []
        if self._live_sources and self._position < newest:
            page = await self._events.read(
                self._live_sources, after=self._position, upto=newest, limit=self._events_per_page
            )
        for event in page:
            for follower in self.route(event):
                if follower.is_live and not follower.offer(event):
                    self._fall_behind(follower, event.number - 1)
        self._position = self._end(page, newest)
        return self._position < newest

    async def _catch_up(self, newest: int) -> bool:
        await self._set_start_positions(newest)
        ready = [one for one in self._behind if one.position is not None and one.has_room]
        if not ready:
            return False
        start = self._next_start(ready)
        sources = frozenset().union(*(follower.sources for follower in ready))
        since = min(follower.since for follower in ready)
        page = await self._events.read(
            sources, after=start, upto=newest, since=since, limit=self._events_per_page
        )
        end = self._end(page, newest)
        # The followers whose next page is this page.
        served = {one for one in ready if one in self._behind and start <= (one.position or 0) <= end}
        for event in page:
            for follower in self.route(event):
                if follower in served and not follower.offer(event):
                    served.discard(follower)
        for follower in served:
            follower.position = end
            if end >= self._position:
                self._go_live(follower)
        return True

    async def _set_start_positions(self, newest: int) -> None:
        """Set the start positions of all new followers, with one query."""
        new = [follower for follower in self._behind if follower.position is None]
        timed = [follower for follower in new if follower.since > -math.inf]
        first: int | None = None
        if timed:
            sources = frozenset().union(*(follower.sources for follower in timed))
            first = await self._events.first_since(sources, min(follower.since for follower in timed))
        for follower in new:
            start = 0
            if follower.since > -math.inf:
                start = newest if first is None else first - 1
            follower.position = min(max(start, follower.after), newest)

    def _next_start(self, ready: list[Follower]) -> int:
        """Return the position at which the next page starts.

        Two positions alternate: the lowest position, because its page serves the most followers, and the position of
        the follower that has been behind for longest. If the page always started at the lowest position, the follower
        that has been behind for longest might never catch up while new followers arrive.
        """
        self._serve_longest_waiting = not self._serve_longest_waiting
        if self._serve_longest_waiting:
            return ready[0].position or 0
        return min(one.position or 0 for one in ready)

    def _fall_behind(self, follower: Follower, position: int) -> None:
        follower.is_live, follower.position = False, position
        self._live_sources -= Counter(follower.sources)
        self._behind[follower] = None

    def _go_live(self, follower: Follower) -> None:
        self._live_sources += Counter(follower.sources)
        del self._behind[follower]
        if not self._behind:
            # Free the memory: a dict keeps the size that it had with thousands of entries.
            self._behind = {}
        follower.go_live()

    def _end(self, page: list[StoredEvent], newest: int) -> int:
        """Return the event number up to which a page contains all events."""
        return page[-1].number if len(page) == self._events_per_page else newest
