"""Which waits of a process an event concerns: asked once for all of them, by an index of what they wait for."""

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
    """The events that one wait's specifications match, while its ``with`` statement lasts.

    It wakes who waits for changes of the wait, so that a wait needs no task of its own that waits for events.

    :param since: seconds since the epoch, before which events are left out.
    :param after: the number of the last event that is known already.
    :param changes: woken whenever :meth:`next` has something.
    :param wakes_when_live: whether they are also woken when everything that was there has been handed over.
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
        """Whether :meth:`next` returns at once."""
        return bool(self._pending)

    def take(self, event: StoredEvent) -> bool:
        """Hand over the next event, and wake."""
        had_room = super().take(event)
        if self._pending:
            self._changes.wake()
        return had_room

    def go_live(self) -> None:
        """Take note that it has been handed everything that was there."""
        super().go_live()
        if self._wakes_when_live:
            self._changes.wake()


class Routes:
    """One index per source, for all waits of a process."""

    def __init__(self) -> None:
        self._indexes: dict[str, MatchIndex[WaitFollower]] = {}

    def add(self, follower: WaitFollower, specification: Specification) -> None:
        """Let a follower have what a specification matches."""
        index = self._indexes.setdefault(specification.source, MatchIndex())
        index.add(follower, specification.match)

    def discard(self, follower: WaitFollower, specification: Specification) -> None:
        """Forget a follower's specification."""
        index = self._indexes.get(specification.source)
        if index is not None:
            index.discard(follower, specification.match)
            if not index:
                del self._indexes[specification.source]

    def followers(self, kept: StoredEvent) -> Iterable[WaitFollower]:
        """Return those that an event concerns. Never raises."""
        index = self._indexes.get(kept.source)
        return () if index is None else index.find(event_of(kept))


def event_of(kept: StoredEvent) -> Event:
    """Return an event as its source gave it."""
    return Event(kept.source, kept.dedupe_key, kept.time, kept.payload, kept.attributes)


_routes: WeakKeyDictionary[Feed, Routes] = WeakKeyDictionary()


def _routes_of(feed: Feed) -> Routes:
    if feed not in _routes:
        _routes[feed] = Routes()
        feed.route = _routes[feed].followers
    return _routes[feed]
