"""Routes each new event of the inbox to those waiting tasks of this process whose specifications match the event."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self
from weakref import WeakKeyDictionary

from deferrable_ops.events.event import Event
from deferrable_ops.events.match_index import MatchIndex
from deferrable_ops.events.specifications import Specification
from deferrable_ops.inbox.events.events import StoredEvent
from deferrable_ops.inbox.events.feed import Feed, Follower
from deferrable_ops.inbox.watcher import Subscription


class WaitFollower(Follower):
    """Receives the events that match the specifications of one wait, during a ``with`` statement.

    The follower wakes the subscription of the wait. So a waiting Airflow task needs no second asyncio task for events.

    :param since: a time in seconds since the epoch. Events before `since` are ignored.
    :param after: the number of the last event that the wait has processed.
    :param changes: the subscription of the wait, which is woken when :meth:`next` can return events at once.
    :param wakes_when_live: whether `changes` is also woken when all stored events have been delivered.
    """

    __slots__ = ("_changes", "_routes", "_specifications", "_wakes_when_live")

    def __init__(
        self,
        feed: Feed,
        specifications: Sequence[Specification],
        *,
        since: float,
        after: int,
        changes: Subscription,
        wakes_when_live: bool,
    ) -> None:
        super().__init__(feed, {one.source for one in specifications}, since, after)
        self._specifications = specifications
        self._changes = changes
        self._wakes_when_live = wakes_when_live
        self._routes = _routes_of(feed)

    def __enter__(self) -> Self:
        for specification in self._specifications:
            self._routes.add(self, specification)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for specification in self._specifications:
            self._routes.discard(self, specification)

    @property
    def has_some(self) -> bool:
        """Whether the follower has events, so that :meth:`next` returns at once."""
        return bool(self._pending)

    def offer(self, event: StoredEvent) -> bool:
        """Add an event to the queue of the follower, and wake the subscription of the wait."""
        had_room = super().offer(event)
        if self._pending:
            self._changes.wake()
        return had_room

    def go_live(self) -> None:
        """Handle the notification that all stored events have been delivered."""
        super().go_live()
        if self._wakes_when_live:
            self._changes.wake()


class Routes:
    """For each source, an index that finds the waiting tasks of this process whose specifications match an event."""

    def __init__(self) -> None:
        self._indexes: dict[str, MatchIndex[WaitFollower]] = {}

    def add(self, follower: WaitFollower, specification: Specification) -> None:
        """From now on, `follower` receives the events that match `specification`."""
        index = self._indexes.setdefault(specification.source, MatchIndex())
        index.add(follower, specification.match)

    def discard(self, follower: WaitFollower, specification: Specification) -> None:
        """From now on, `follower` no longer receives the events that match `specification`."""
        index = self._indexes.get(specification.source)
        if index is not None:
            index.discard(follower, specification.match)
            if not index:
                del self._indexes[specification.source]

    def followers(self, kept: StoredEvent) -> Iterable[WaitFollower]:
        """Return the followers that receive an event. This method never raises an exception."""
        index = self._indexes.get(kept.source)
        return () if index is None else index.find(to_event(kept))


def to_event(kept: StoredEvent) -> Event:
    """Convert an event that is stored in the inbox into an Event."""
    return Event(kept.source, kept.dedupe_key, kept.time, kept.payload, kept.attributes)


_routes: WeakKeyDictionary[Feed, Routes] = WeakKeyDictionary()


def _routes_of(feed: Feed) -> Routes:
    if feed not in _routes:
        _routes[feed] = Routes()
        feed.route = _routes[feed].followers
    return _routes[feed]
