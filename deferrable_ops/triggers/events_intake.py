"""What one wait takes of the events, and how it learns that there are some."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from typing import Final

from deferrable_ops.events.gathering import Gathering
from deferrable_ops.events.matching import matching_names
from deferrable_ops.events.specifications import Specification
from deferrable_ops.inbox.events import Events, KeptEvent
from deferrable_ops.inbox.feed import Feed
from deferrable_ops.outcome import Outcome
from deferrable_ops.triggers.events_following import WaitFollower, event_of

_EVENTS_PER_PAGE: Final = 200


class Intake:
    """The events of one wait, gathered.

    :param since: seconds since the epoch, before which events do not count, by their own time.
    :param latest: seconds since the epoch, after which they do not, by when the inbox received them: the deadline.
    :ivar failed_because: why the wait cannot go on.
    """

    __slots__ = (
        "_alarm",
        "_called",
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
    ) -> None:
        self.specifications = specifications
        self.gathering = gathering
        self.since = since
        self.latest = latest
        self.failed_because: str | None = None
        self._warnings: tuple[str, ...] = ()
        self._follower: WaitFollower | None = None
        self._alarm: asyncio.Timeout | None = None
        self._called = False

    def follow(self, feed: Feed) -> WaitFollower:
        """Return what follows the wait's events from where it stands, while its ``with`` statement lasts."""
        self._follower = WaitFollower(
            feed, self.specifications, since=self.since, after=self.gathering.order, call=self._call
        )
        return self._follower

    async def unless_called(
        self, ending: Coroutine[None, None, Outcome], within: float | None
    ) -> Outcome | None:
        """Return how the wait ends; None as soon as there is something to look at, or a time has passed.

        An alarm interrupts it, where a second task would cost a wait a quarter more memory.

        :param ending: returns the outcome once there is one.
        :param within: seconds.
        """
        if self._called:
            within = 0.0
        alarm = asyncio.timeout(within)
        try:
            async with alarm:
                self._alarm = alarm
                return await ending
        except TimeoutError:
            if not alarm.expired():
                raise
            return None
        finally:
            self._alarm = None

    async def take_what_came(self) -> bool:
        """Take what has come; return whether any of it counts."""
        self._called = False
        if self._follower is None or not self._follower.has_some:
            return False
        return self._take(await self._follower.next())

    async def take_the_rest(self, events: Events) -> None:
        """Take what the inbox has and nobody has handed over yet. What comes from now on does not count."""
        alarm, self._alarm = self._alarm, None
        if alarm is not None and not alarm.expired():
            alarm.reschedule(None)
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
        self._call()

    def take_warnings(self) -> tuple[str, ...]:
        """Return what is to be said, once."""
        warnings, self._warnings = self._warnings, ()
        return warnings

    def fail(self, reason: str) -> None:
        """Have the wait fail."""
        self.failed_because = reason
        self._call()

    def _take(self, events: Iterable[KeptEvent]) -> bool:
        before = self.gathering.order
        for kept in events:
            if kept.received_at <= self.latest:
                event = event_of(kept)
                names = matching_names(self.specifications, event, since=self.since)
                if names:
                    self.gathering.take(kept.number, event, names)
        return self.gathering.order > before

    def _call(self) -> None:
        self._called = True
        if self._alarm is not None and not self._alarm.expired():
            self._alarm.reschedule(asyncio.get_running_loop().time())
