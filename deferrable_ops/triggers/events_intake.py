"""What one wait takes of the events, and how it learns that there are some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from deferrable_ops.events.gathering import Gathering
from deferrable_ops.events.matching import matching_names
from deferrable_ops.events.specifications import Specification
from deferrable_ops.inbox.events import Events, KeptEvent
from deferrable_ops.inbox.feed import Feed
from deferrable_ops.inbox.watcher import Subscription
from deferrable_ops.triggers.events_following import WaitFollower, event_of

_EVENTS_PER_PAGE: Final = 200


class Intake:
    """The events of one wait, gathered.

    :param since: seconds since the epoch, before which events do not count, by their own time.
    :param latest: seconds since the epoch, after which they do not, by when the inbox received them: the deadline.
    :param changes: woken when there is something to look at.
    :ivar failed_because: why the wait cannot go on.
    """

    __slots__ = (
        "_changes",
        "_follower",
        "_warnings",
        "failed_because",
        "gathering",
        "latest",
        "since",
        "specifications",
    )

    def __init__(
        self,
        specifications: Mapping[str, Specification],
        gathering: Gathering,
        *,
        since: float,
        latest: float,
        changes: Subscription,
    ) -> None:
        self.specifications = specifications
        self.gathering = gathering
        self.since = since
        self.latest = latest
        self.failed_because: str | None = None
        self._warnings: tuple[str, ...] = ()
        self._follower: WaitFollower | None = None
        self._changes = changes

    def follow(self, feed: Feed) -> WaitFollower:
        """Return what follows the wait's events from where it stands, while its ``with`` statement lasts."""
        self._follower = WaitFollower(
            feed, self.specifications, since=self.since, after=self.gathering.order, changes=self._changes
        )
        return self._follower

    async def take_what_came(self) -> bool:
        """Take what has come; return whether any of it counts."""
        if self._follower is None or not self._follower.has_some:
            return False
        return self._take(await self._follower.next())

    async def take_the_rest(self, events: Events) -> None:
        """Take what the inbox has and nobody has handed over yet. What comes from now on does not count."""
        await self.take_what_came()
        after = self.gathering.order
        if self._follower is not None:
            after = max(after, self._follower.position or 0)
        newest = await events.newest()
        sources = {one.source for one in self.specifications.values()}
        while not self.gathering.complete and after < newest:
            page = await events.read(
                sources, after=after, upto=newest, since=self.since, most=_EVENTS_PER_PAGE
            )
            self._take(page)
            after = page[-1].number if len(page) == _EVENTS_PER_PAGE else newest

    def warn(self, warning: str) -> None:
        """Have something said in the task's log, which only the wait itself can write to."""
        self._warnings = (*self._warnings, warning)
        self._changes.wake()

    def take_warnings(self) -> tuple[str, ...]:
        """Return what is to be said, once."""
        warnings, self._warnings = self._warnings, ()
        return warnings

    def fail(self, reason: str) -> None:
        """Have the wait fail."""
        self.failed_because = reason
        self._changes.wake()

    def _take(self, events: Iterable[KeptEvent]) -> bool:
        before = self.gathering.order
        for kept in events:
            if kept.received_at <= self.latest:
                event = event_of(kept)
                names = matching_names(self.specifications, event, since=self.since)
                if names:
                    self.gathering.take(kept.number, event, names)
        return self.gathering.order > before
