"""One reader per process: it reads the events that are followed here, once, and hands them out as they were committed.

Who follows starts behind, at a moment or number of its own, and is brought up with all others who are behind: they
share the pages that they have in common. Where it meets the reader it goes on with it. Both happen in one task, in
turns, so nothing falls in between, and nothing comes twice. Whoever does not take what it is handed falls behind
again, and holds up nobody. Waiting for events costs a look at one number, whoever follows what.
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
_MOST_PENDING = 1_000
_AFTER_TROUBLE = 1.0


class Follower:
    """The events of some sources, while its ``with`` statement lasts.

    :ivar sources: which, none twice.
    :ivar since: seconds since the epoch, before which events are left out.
    :ivar position: the number up to which it was handed what concerns it; None: it has not begun.
    :ivar is_live: whether it goes with the reader, and is not behind it.
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
        """Take note that it has been handed everything that was there, and goes with the reader from now on."""
        self.is_live = True

    @property
    def upto(self) -> int:
        """The number up to which it was handed all that concerns it; 0 before it has begun."""
        return self._feed.position if self.is_live else self.position or 0

    @property
    def has_room(self) -> bool:
        """Whether it can be handed more."""
        return len(self._pending) < _MOST_PENDING

    async def next(self) -> list[StoredEvent]:
        """Return the events that have come since the last call, at least one, in the order of their commits."""
        while not self._pending:
            self._future = asyncio.get_running_loop().create_future()
            try:
                await self._future
            finally:
                self._future = None
        taken, self._pending = self._pending, []
        if not self.is_live:
            self._feed.look()
        return taken

    def take(self, event: StoredEvent) -> bool:
        """Hand over the next event, unless it was handed over before; return whether there was room for it."""
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
    """The events that are followed in this process."""

    def __init__(self, database: Database, events: Events, watcher: Watcher) -> None:
        self._database = database
        self._events = events
        self._watcher = watcher
        self._followers: dict[str, dict[Follower, None]] = {}
        self._live_sources: Counter[str] = Counter()
        self._behind: dict[Follower, None] = {}  # in the order in which they fell behind
        self._position = 0
        self._lowest_first = True
        self._look = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.route: Callable[[StoredEvent], Iterable[Follower]] = self._all_of_its_source
        """Returns which followers an event may concern; others are not handed it. An index of what they are waiting
        for can take this place."""
        events.on_append = watcher.on_events = self._on_events

    @property
    def position(self) -> int:
        """The number up to which everything was handed to those who are live."""
        return self._position

    def follow(self, sources: Collection[str], *, since: float | None = None, after: int = 0) -> Follower:
        """Follow sources from a moment on, which may be past.

        :param since: seconds since the epoch: only events that are not older, by their own time.
        :param after: a number: only events with a higher one; above the newest, those that come from now on.
        """
        return Follower(self, sources, -math.inf if since is None else since, after)

    def enter(self, follower: Follower) -> None:
        """Begin to hand out events to a follower."""
        for source in follower.sources:
            self._followers.setdefault(source, {})[follower] = None
        self._behind[follower] = None
        self._watcher.start()
        if self._task is None:
            self._task = self._database.spawn(self._run(), "feed")
        self.look()

    def leave(self, follower: Follower) -> None:
        """Hand out no more to a follower."""
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

    def look(self) -> None:
        """Look for events soon."""
        self._look.set()

    async def close(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def _on_events(self, sources: Collection[str] | None) -> None:
        if sources is None or any(source in self._followers for source in sources):
            self.look()

    def _all_of_its_source(self, event: StoredEvent) -> Iterable[Follower]:
        return self._followers.get(event.source, ())

    async def _run(self) -> None:
        while True:
            self._look.clear()
            try:
                more = bool(self._followers) and await self._read()
            except Exception as error:
                expected = isinstance(error, InboxUnavailable)
                log.warning("Events cannot be read: %s", error, exc_info=not expected)
                await asyncio.sleep(_AFTER_TROUBLE)
                continue
            if not more:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._watcher.sweep_interval if self._followers else None):
                        await self._look.wait()

    async def _read(self) -> bool:
        """Read a page for those who are live, and one for those who are behind; return whether there may be more."""
        newest = await self._events.newest()
        if newest < self._position:
            self._start_over(newest)
        more_for_the_live = await self._read_on(newest)
        return await self._bring_up(newest) or more_for_the_live

    def _start_over(self, newest: int) -> None:
        """Go back: the server was replaced by one that has lost commits, and gives their numbers out again."""
        log.warning("The inbox has lost events: its newest number was %d and is %d", self._position, newest)
        self._position = newest
        for followers in self._followers.values():
            for follower in followers:
                if follower.position is not None:
                    follower.position = min(follower.position, newest)

    async def _read_on(self, newest: int) -> bool:
        page: list[StoredEvent] = []
        if self._live_sources and self._position < newest:
            page = await self._events.read(
                self._live_sources, after=self._position, upto=newest, limit=_EVENTS_PER_PAGE
            )
        for event in page:
            for follower in self.route(event):
                if follower.is_live and not follower.take(event):
                    self._fall_behind(follower, event.number - 1)
        self._position = _end(page, newest)
        return self._position < newest

    async def _bring_up(self, newest: int) -> bool:
        await self._place(newest)
        ready = [one for one in self._behind if one.position is not None and one.has_room]
        if not ready:
            return False
        start = self._next_start(ready)
        sources = frozenset().union(*(follower.sources for follower in ready))
        since = min(follower.since for follower in ready)
        page = await self._events.read(sources, after=start, upto=newest, since=since, limit=_EVENTS_PER_PAGE)
        end = _end(page, newest)
        carried = {one for one in ready if one in self._behind and start <= (one.position or 0) <= end}
        for event in page:
            for follower in self.route(event):
                if follower in carried and not follower.take(event):
                    carried.discard(follower)
        for follower in carried:
            follower.position = end
            if end >= self._position:
                self._go_live(follower)
        return True

    async def _place(self, newest: int) -> None:
        """Find where those begin who have just come: with one question for all of them."""
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
        """Return where the next page begins: with who is furthest behind, and in turns with who has waited longest.

        The one shares the most. The other keeps those who come all the time from holding up who came before.
        """
        self._lowest_first = not self._lowest_first
        return ready[0].position or 0 if self._lowest_first else min(one.position or 0 for one in ready)

    def _fall_behind(self, follower: Follower, position: int) -> None:
        follower.is_live, follower.position = False, position
        self._live_sources -= Counter(follower.sources)
        self._behind[follower] = None

    def _go_live(self, follower: Follower) -> None:
        self._live_sources += Counter(follower.sources)
        del self._behind[follower]
        if not self._behind:
            self._behind = {}  # a dict that thousands were in stays as large
        follower.go_live()


def _end(page: list[StoredEvent], newest: int) -> int:
    """Return the number up to which a page has everything."""
    return page[-1].number if len(page) == _EVENTS_PER_PAGE else newest
