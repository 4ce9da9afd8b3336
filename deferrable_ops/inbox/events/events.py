"""Events: appended once each, numbered in the order of their commits, and read in that order.

The numbers are one row that an append locks until its commit. So they become visible in their order, over all
sources, and a reader may go on from the highest that it has seen. What has come before is told by its keys, which
outlive their events.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.group_commit import GroupCommit
from deferrable_ops.inbox.events import event_rows
from deferrable_ops.inbox.events.event_schema import event_counter, source_positions


class DedupeKeyLike(Protocol):
    """Something that only repetitions of one event have in common."""

    @property
    def key(self) -> str:
        """What it is, unique within the source."""

    @property
    def within(self) -> float | None:
        """For how many seconds it tells a repetition; None: for as long as it is kept."""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to append.

    :param source: where it comes from.
    :param dedupe_key: what it is within its source, the same whenever the source delivers it again.
    :param payload: a JSON value.
    :param attributes: what came with the payload, a JSON object.
    :param time: seconds since the epoch; None: when the database received it.
    :param dedupe_keys: it is a repetition when any of them was seen; none: the dedupe key is the one.
    """

    source: str
    dedupe_key: str
    payload: Any
    attributes: dict[str, Any]
    time: float | None = None
    dedupe_keys: Sequence[DedupeKeyLike] = ()

    def told_by(self) -> list[tuple[str, float | None]]:
        """Return what tells its repetitions: keys, and for how many seconds each."""
        if not self.dedupe_keys:
            return [(_storable(self.dedupe_key), None)]
        return [(_storable(key.key), key.within) for key in self.dedupe_keys]


@dataclass(frozen=True, slots=True)
class AppendResult:
    """What became of an event.

    :param number: its own; of a repetition, the number of the first.
    :param received_at: when the first was received, in seconds since the epoch.
    """

    number: int
    received_at: float
    is_duplicate: bool


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as the inbox keeps it.

    :param number: its place in the order of all commits, from 1; numbers may be missing.
    :param time: seconds since the epoch, by the source's clock where it has one.
    :param received_at: seconds since the epoch, by the database's clock.
    """

    number: int
    source: str
    dedupe_key: str
    time: float
    received_at: float
    payload: Any
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SourcePosition:
    """How far a consumer has read a source.

    :param consumer: a wait's id: once that wait is over, nobody asks for it, and it is forgotten.
    :param position: a JSON value of the consumer's own.
    """

    source: str
    consumer: str
    position: Any


class Events:
    """The events of all sources."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # One writer: a second would only wait for the numbers.
        self._group: GroupCommit[NewEvent, AppendResult] = GroupCommit(database, self._append_batch)
        self._one_by_one = asyncio.Lock()
        self.on_append: Callable[[Collection[str]], None] = lambda sources: None
        """Called with the sources of what this process has committed."""

    async def append(self, event: NewEvent) -> AppendResult:
        """Append an event that comes alone, and return once it is committed.

        :raises InboxUnavailable: the database did not answer; the event may have been committed.
        """
        appended = await self._group(event)
        self._tell([event], [appended])
        return appended

    async def append_all(
        self, events: Sequence[NewEvent], *, positions: Sequence[SourcePosition] = ()
    ) -> list[AppendResult]:
        """Append events that come together, and how far their sources are read now, in one transaction.

        Those who call it return in the order of their commits.

        :raises InboxUnavailable: the database did not answer; all may have been committed, or nothing.
        """

        async def write(transaction: Transaction) -> list[AppendResult]:
            appended = await self._append_batch(transaction, events)
            if latest:
                await event_rows.reach(transaction, [(*key, json.dumps(at)) for key, at in latest.items()])
            return appended

        latest = {(one.source, one.consumer): one.position for one in positions}
        if not events and not latest:
            return []
        async with self._one_by_one:
            appended = await self._database.write(write)
        self._tell(events, appended)
        return appended

    async def position_of(self, source: str, consumer: str) -> Any:
        """Return how far a consumer had read a source when it last said so; None: it never did."""

        async def read(connection: AsyncConnection) -> str | None:
            query = select(source_positions.c.position).where(
                source_positions.c.source == source, source_positions.c.consumer == consumer
            )
            return (await connection.execute(query)).scalar()

        position = await self._database.read(read)
        return None if position is None else json.loads(position)

    async def newest(self) -> int:
        """Return the number that no committed event exceeds; every event up to it can be read."""

        async def read(connection: AsyncConnection) -> int:
            return int((await connection.execute(select(event_counter.c.value))).scalar_one())

        return await self._database.read(read)

    async def kept_since(self) -> float:
        """Return since when all that was received is kept, in seconds since the epoch; 0: nothing was forgotten."""

        async def read(connection: AsyncConnection) -> float:
            return float((await connection.execute(select(event_counter.c.kept_since))).scalar_one())

        return await self._database.read(read)

    async def read(
        self, sources: Collection[str], *, after: int, upto: int, since: float | None = None, limit: int
    ) -> list[StoredEvent]:
        """Return the first events after a number, in the order of their commits.

        :param upto: the last number that is looked at: what :meth:`newest` returned, or less.
        :param since: seconds since the epoch, before which events are left out.
        :param limit: the most events to return.
        """
        if not sources or upto <= after:
            return []
        bounds: dict[str, Any] = {"after": after, "upto": upto, "since": _moment(since), "limit": limit}
        rows = await self._database.read(lambda connection: event_rows.read(connection, sources, **bounds))
        return [_kept(row) for row in rows]

    async def first_since(self, sources: Collection[str], since: float) -> int | None:
        """Return the lowest number of the events that are not older than a moment; None: there is none."""
        return await self._database.read(
            lambda connection: event_rows.first_since(connection, sources, _moment(since))
        )

    async def _append_batch(self, transaction: Transaction, batch: Sequence[NewEvent]) -> list[AppendResult]:
        if not batch:
            return []
        number = await event_rows.take_numbers(transaction, len(batch)) - len(batch)
        # Read under the lock of the numbers: nobody else can add a key meanwhile.
        asked = [(_storable(event.source), key) for event in batch for key, _ in event.told_by()]
        found = await event_rows.find_keys(transaction, asked)
        seen = {(source, key): (first, seen_at) for source, key, first, seen_at in found}
        added: list[event_rows.Row] = []
        keys: dict[tuple[str, str], int] = {}
        appended = []
        for event in batch:
            source, told_by = _storable(event.source), event.told_by()
            first = _first(seen, source, told_by, transaction.now)
            if first is not None:
                appended.append(AppendResult(*first, is_duplicate=True))
                continue
            number += 1
            added.append(_row(number, source, event))
            for key, _ in told_by:
                seen[source, key] = (number, transaction.now)
                keys[source, key] = number
            appended.append(AppendResult(number, transaction.now, is_duplicate=False))
        if added:
            told = {row[1] for row in added} if self._database.notify else ()
            await event_rows.add(transaction, added, [(*key, at) for key, at in keys.items()], told)
        return appended

    def _tell(self, events: Sequence[NewEvent], appended: Sequence[AppendResult]) -> None:
        new = {event.source for event, one in zip(events, appended, strict=True) if not one.is_duplicate}
        if new:
            self.on_append(new)


def _first(
    seen: dict[tuple[str, str], tuple[int, float]],
    source: str,
    told_by: Sequence[tuple[str, float | None]],
    now: float,
) -> tuple[int, float] | None:
    for key, within in told_by:
        first = seen.get((source, key))
        if first is not None and (within is None or now - first[1] <= within):
            return first
    return None


def _row(number: int, source: str, event: NewEvent) -> event_rows.Row:
    payload, attributes = json.dumps(event.payload), json.dumps(event.attributes)
    return number, source, _storable(event.dedupe_key), event.time, payload, attributes


def _kept(row: event_rows.Row) -> StoredEvent:
    number, source, dedupe_key, time, received_at, payload, attributes = row
    return StoredEvent(
        number, source, dedupe_key, time, received_at, json.loads(payload), json.loads(attributes)
    )


def _moment(since: float | None) -> float:
    return -math.inf if since is None else since


def _storable(text: str) -> str:
    """Return a text without what neither database stores: NUL and halves of surrogate pairs."""
    if text.isascii() and "\x00" not in text:
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")
