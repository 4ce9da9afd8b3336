"""Routes each event of the inbox to the waits of this process that match it. All waits share the match indexes."""

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
    """Follows the events that match one wait's specifications, for the duration of a ``with`` statement.

    The follower wakes the wait's subscription, so a wait needs no second asyncio task that waits for events.

    :param since: seconds since the epoch. Earlier events are ignored.
    :param after: the number of the last event that the wait has counted.
    :param changes: the subscription to wake whenever :meth:`next` would return events.
    :param wakes_when_live: whether to wake `changes` also at the moment when all stored events have been delivered.
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
        """Whether :meth:`next` would return at once."""
        return bool(self._pending)

    def offer(self, event: StoredEvent) -> bool:
        """Queue the next event, and wake the wait."""
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
    """The match indexes of all waits of a process, one for each source."""

    def __init__(self) -> None:
        self._indexes: dict[str, MatchIndex[WaitFollower]] = {}

    def add(self, follower: WaitFollower, specification: Specification) -> None:
        """Route the events that match a specification to a follower."""
        index = self._indexes.setdefault(specification.source, MatchIndex())
        index.add(follower, specification.match)

    def discard(self, follower: WaitFollower, specification: Specification) -> None:
        """Stop routing the events that match a specification to a follower."""
        index = self._indexes.get(specification.source)
        if index is not None:
            index.discard(follower, specification.match)
            if not index:
                del self._indexes[specification.source]

    def followers(self, kept: StoredEvent) -> Iterable[WaitFollower]:
        """Return the followers with a specification that an event matches. Never raises."""
        index = self._indexes.get(kept.source)
        return () if index is None else index.find(to_event(kept))


def to_event(kept: StoredEvent) -> Event:
    """Convert an event of the inbox into the event that its source delivered."""
    return Event(kept.source, kept.dedupe_key, kept.time, kept.payload, kept.attributes)


_routes: WeakKeyDictionary[Feed, Routes] = WeakKeyDictionary()


def _routes_of(feed: Feed) -> Routes:
    if feed not in _routes:
        _routes[feed] = Routes()
        feed.route = _routes[feed].followers
    return _routes[feed]
