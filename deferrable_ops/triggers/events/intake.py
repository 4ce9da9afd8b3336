"""What one wait takes of the events, and how it learns that there are some.

A channel's and a queue's events come in the order of their commits, by the inbox's feed. A Kafka topic is read for
each wait from an offset of its own, so others may have stored a record before this wait has read those before it.
So that the order of each partition is kept, a wait takes what was read for itself, as it was read; what it had read
before a restart is in the inbox, up to the offsets that are stored with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from deferrable_ops.events.event import Event
from deferrable_ops.events.gathering import Gathering
from deferrable_ops.events.matching import matching_names
from deferrable_ops.events.specifications import KafkaEvent, Specification
from deferrable_ops.inbox.events.events import AppendResult, Events, StoredEvent
from deferrable_ops.inbox.events.feed import Feed
from deferrable_ops.inbox.watcher import Subscription
from deferrable_ops.triggers.events.partitions import in_partition_order, was_read
from deferrable_ops.triggers.events.routing import WaitFollower, event_of

_EVENTS_PER_PAGE: Final = 200
_LOOK_AGAIN: Final = 0.1
_NOTHING: Final[AbstractContextManager[Any]] = nullcontext()
_NONE: Final[Mapping[str, Any]] = {}  # one for all: there are thousands of waits


class Intake:
    """The events of one wait, gathered.

    :param specifications: by the names that are gathered.
    :param since: seconds since the epoch, before which events do not count, by their own time.
    :param latest: seconds since the epoch, after which they do not, by when the inbox received them: the deadline.
    :param changes: woken when there is something to look at.
    :ivar specifications: in the order of the names.
    :ivar failed_because: why the wait cannot go on.
    """

    __slots__ = (
        "_changes",
        "_earlier",
        "_earlier_upto",
        "_follower",
        "_has_begun",
        "_known",
        "_looked_up_to",
        "_reached",
        "_read",
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
        self.specifications = tuple(specifications[name] for name in gathering.names)
        self.gathering = gathering
        self.since = since
        self.latest = latest
        self.failed_because: str | None = None
        self._warnings: tuple[str, ...] = ()
        self._follower: WaitFollower | None = None
        self._changes = changes
        self._has_begun = False
        self._looked_up_to = 0
        self._read: list[tuple[AppendResult, Event]] | None = None  # for this wait, and not taken yet
        # Of a topic that was read for this wait before a restart, up to which offsets; None: all that is there.
        self._reached: Mapping[str, Mapping[str, int] | None] = _NONE
        self._earlier: list[StoredEvent] | None = None  # what comes before all else, until all of it is there
        self._earlier_upto = 0
        self._known: Collection[str] = ()  # what of it Kafka might be asked for again

    @property
    def wanted(self) -> Iterator[tuple[str, Specification]]:
        """The names and what they stand for. No dict of them is kept: there are thousands of waits."""
        return zip(self.gathering.names, self.specifications, strict=True)

    def go_on(self, source: str, offsets: Mapping[str, int] | None, upto: int = 0) -> None:
        """Note that a topic was read for this wait before a restart, up to these offsets.

        :param upto: the number up to which the inbox has all of that.
        """
        self._reached = {**self._reached, source: offsets}
        self._earlier, self._earlier_upto = [], max(upto, self._earlier_upto)

    def follow(self, feed: Feed) -> AbstractContextManager[Any]:
        """Follow in the inbox what is not read for this wait alone, while the ``with`` statement lasts."""
        self._has_begun = True
        sources = self._followed()
        if not sources:
            return _NOTHING
        wanted = tuple(one for one in self.specifications if one.source in sources)
        if wanted == self.specifications:
            wanted = self.specifications  # kept once
        self._follower = WaitFollower(
            feed,
            wanted,
            since=self.since,
            after=self.gathering.order,
            changes=self._changes,
            wakes_when_live=self._earlier is not None,
        )
        return self._follower

    def take_read(self, commit: AppendResult, event: Event) -> None:
        """Take a record that was read for this wait, and is stored. They come in the order of their partitions."""
        if self._read is None:
            self._read = []
        self._read.append((commit, event))
        self._changes.wake()

    async def take_what_came(self, events: Events) -> bool:
        """Take what has come; return whether any of it counts."""
        counts = False
        if self._follower is not None:
            if self._follower.has_some:
                counts = self._take_kept(await self._follower.next())
            if self._follower.upto >= self._earlier_upto:
                counts |= self._take_earlier()
            elif self._follower.is_live:
                # The feed itself is behind, and does not tell those who are live when it no longer is.
                asyncio.get_running_loop().call_later(_LOOK_AGAIN, self._changes.wake)
        return await self._take_what_was_read(events) or counts

    async def take_the_rest(self, events: Events, wait_id: str) -> None:
        """Take what the inbox has and nobody has handed over yet. What comes from now on does not count."""
        if not self._has_begun:
            for source in {one.source for one in self.specifications if _is_kafka(one)}:
                self.go_on(source, await events.position_of(source, wait_id))
        await self.take_what_came(events)
        after = 0 if self._follower is None else self._follower.position or 0
        await self._take_pages(events, self._followed(), after, await events.newest())
        self._take_earlier()
        await self._take_what_was_read(events)

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

    def _followed(self) -> set[str]:
        wanted = self.specifications
        return {one.source for one in wanted if not _is_kafka(one) or one.source in self._reached}

    def _take_kept(self, page: Iterable[StoredEvent]) -> bool:
        counts = False
        for kept in page:
            is_kafka = kept.source in self._reached
            if self._earlier is not None:
                if not is_kafka or was_read(kept, self._reached[kept.source]):
                    self._earlier.append(kept)
            elif not is_kafka:
                counts |= self._take(kept.number, kept.received_at, event_of(kept))
        return counts

    def _take_earlier(self) -> bool:
        if self._earlier is None:
            return False
        earlier, self._earlier = self._earlier, None
        self._known = {kept.dedupe_key for kept in earlier if kept.source in self._reached}
        counts = False
        for number, kept in in_partition_order(earlier):
            counts |= self._take(number, kept.received_at, event_of(kept))
        return counts

    async def _take_what_was_read(self, events: Events) -> bool:
        """Take what was read for this wait, each after what the inbox was given before it."""
        counts = False
        others = {one.source for one in self.specifications if not _is_kafka(one)}
        while self._read and self._earlier is None:
            read, self._read = self._read, None
            for commit, event in read:
                if others:
                    after = max(self.gathering.order, self._looked_up_to)
                    await self._take_pages(events, others, after, commit.number)
                if event.dedupe_key not in self._known:
                    counts |= self._take(None, commit.received_at, event)
        return counts

    async def _take_pages(self, events: Events, sources: Collection[str], after: int, upto: int) -> None:
        after = max(after, self.gathering.order)
        while not self.gathering.complete and after < upto:
            page = await events.read(
                sources, after=after, upto=upto, since=self.since, limit=_EVENTS_PER_PAGE
            )
            self._take_kept(page)
            after = page[-1].number if len(page) == _EVENTS_PER_PAGE else upto
        self._looked_up_to = max(self._looked_up_to, after)

    def _take(self, order: int | None, received_at: float, event: Event) -> bool:
        gathering = self.gathering
        if received_at > self.latest or (order is not None and order <= gathering.order):
            return False
        names = matching_names(dict(self.wanted), event, since=self.since)
        if names:
            gathering.take(order, event, names)
        return bool(names)


def _is_kafka(specification: Specification) -> bool:
    return type(specification) is KafkaEvent
