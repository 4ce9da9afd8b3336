"""Stores and reads events.

Each event is stored once, and has a number that increases in commit order. A transaction that appends events takes the
event numbers from the counter row, and locks this row until the commit. Therefore events of all sources become visible
in the order of their numbers, and a reader can continue after the highest number that it has read. Duplicates are
detected by dedupe keys, which are kept longer than the events.
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
    """A dedupe key identifies an event: a second event with the same dedupe key is a duplicate."""

    @property
    def key(self) -> str:
        """The text of the dedupe key, which is unique within the source."""

    @property
    def within(self) -> float | None:
        """For how many seconds the dedupe key detects duplicates.

        If `within` is None, the dedupe key detects duplicates as long as it is stored.
        """


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to append.

    :param source: the event's source, such as ``channel:orders``.
    :param dedupe_key: identifies the event within its source. If the source sends the event again, the dedupe key is
        the same.
    :param payload: a JSON value.
    :param attributes: the metadata that the source sent with the payload, such as headers or a key, as a JSON object.
    :param time: the event's time in seconds since the epoch; None selects the time when the database received the
        event.
    :param dedupe_keys: the event is a duplicate if any of these dedupe keys is stored. If `dedupe_keys` is empty, only
        `dedupe_key` is used.
    """

    source: str
    dedupe_key: str
    payload: Any
    attributes: dict[str, Any]
    time: float | None = None
    dedupe_keys: Sequence[DedupeKeyLike] = ()

    def all_keys(self) -> list[tuple[str, float | None]]:
        """Return the dedupe keys of this event, and for each key how many seconds it detects duplicates."""
        if not self.dedupe_keys:
            return [(_storable(self.dedupe_key), None)]
        return [(_storable(key.key), key.within) for key in self.dedupe_keys]


@dataclass(frozen=True, slots=True)
class AppendResult:
    """The result of appending an event.

    :param number: the number of the event; for a duplicate, the number of the first event.
    :param received_at: the time when the event was received, in seconds since the epoch; for a duplicate, the time when
        the first event was received.
    """

    number: int
    received_at: float
    is_duplicate: bool


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event in the inbox.

    :param number: the number of the event. Event numbers start at 1 and increase in commit order, with gaps.
    :param time: the event's time in seconds since the epoch: the time that the source gives, or else `received_at`.
    :param received_at: the time when the event was received, in seconds since the epoch, by the database's clock.
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
    """The position up to which a consumer has read a source.

    :param consumer: the id of the wait that reads the source. Some time after the wait has ended, the position is
        deleted.
    :param position: a JSON value that the consumer defines, such as Kafka offsets.
    """

    source: str
    consumer: str
    position: Any


class Events:
    """Appends events to the inbox and reads them, for all sources."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # One writer, because a second writer would only wait for the lock on the counter.
        self._group: GroupCommit[NewEvent, AppendResult] = GroupCommit(database, self._append_batch)
        self._append_all_lock = asyncio.Lock()
        self.on_append: Callable[[Collection[str]], None] = lambda sources: None
        """Called with the sources of new events after this process has committed the events."""

    async def append(self, event: NewEvent) -> AppendResult:
        """Append one event, and return after the event is committed. Concurrent calls share transactions.

        :raises InboxUnavailable: if the database did not answer; the event may have been committed.
        """
        result = await self._group(event)
        self._notify([event], [result])
        return result

    async def append_all(
        self, events: Sequence[NewEvent], *, positions: Sequence[SourcePosition] = ()
    ) -> list[AppendResult]:
        """Append events, and store the positions up to which consumers have read sources, in one transaction.

        No other call shares this transaction. Concurrent calls return in commit order.

        :raises InboxUnavailable: if the database did not answer. Either all events and positions were committed, or
            none.
        """

        async def write(transaction: Transaction) -> list[AppendResult]:
            results = await self._append_batch(transaction, events)
            if latest:
                rows = [(*key, json.dumps(position)) for key, position in latest.items()]
                await event_rows.set_positions(transaction, rows)
            return results

        latest = {(one.source, one.consumer): one.position for one in positions}
        if not events and not latest:
            return []
        async with self._append_all_lock:
            results = await self._database.write(write)
        self._notify(events, results)
        return results

    async def position_of(self, source: str, consumer: str) -> Any:
        """Return the stored position up to which a consumer has read a source, or None if no position is stored."""

        async def read(connection: AsyncConnection) -> str | None:
            query = select(source_positions.c.position).where(
                source_positions.c.source == source, source_positions.c.consumer == consumer
            )
            return (await connection.execute(query)).scalar()

        position = await self._database.read(read)
        return None if position is None else json.loads(position)

    async def newest(self) -> int:
        """Return the highest event number. Every event up to this number is committed and can be read."""

        async def read(connection: AsyncConnection) -> int:
            return int((await connection.execute(select(event_counter.c.value))).scalar_one())

        return await self._database.read(read)

    async def kept_since(self) -> float:
        """Return a time in seconds since the epoch: no event that was received after this time has been deleted.

        Return 0 if no event was ever deleted.
        """

        async def read(connection: AsyncConnection) -> float:
            return float((await connection.execute(select(event_counter.c.kept_since))).scalar_one())

        return await self._database.read(read)

    async def read(
        self, sources: Collection[str], *, after: int, upto: int, since: float | None = None, limit: int
    ) -> list[StoredEvent]:
        """Return events whose number is greater than `after`, in commit order.

        :param upto: the highest event number to read, which must not exceed the result of :meth:`newest`.
        :param since: a time in seconds since the epoch. Events with an earlier time are not returned.
        :param limit: the maximum number of events to return.
        """
        if not sources or upto <= after:
            return []
        bounds: dict[str, Any] = {"after": after, "upto": upto, "since": _moment(since), "limit": limit}
        rows = await self._database.read(lambda connection: event_rows.read(connection, sources, **bounds))
        return [_stored(row) for row in rows]

    async def first_since(self, sources: Collection[str], since: float) -> int | None:
        """Return the lowest event number among the events with a time of `since` or later.

        Return None if there is no such event.
        """
        return await self._database.read(
            lambda connection: event_rows.first_since(connection, sources, _moment(since))
        )

    async def _append_batch(self, transaction: Transaction, batch: Sequence[NewEvent]) -> list[AppendResult]:
        if not batch:
            return []
        number = await event_rows.take_numbers(transaction, len(batch)) - len(batch)
        # The lock on the counter keeps other transactions from adding a key after this query.
        keys_of_batch = [(_storable(event.source), key) for event in batch for key, _ in event.all_keys()]
        found = await event_rows.find_keys(transaction, keys_of_batch)
        seen = {(source, key): (first, seen_at) for source, key, first, seen_at in found}
        added: list[event_rows.Row] = []
        new_keys: dict[tuple[str, str], int] = {}
        results = []
        for event in batch:
            source, keys = _storable(event.source), event.all_keys()
            first = _first_event(seen, source, keys, transaction.now)
            if first is not None:
                results.append(AppendResult(*first, is_duplicate=True))
                continue
            number += 1
            added.append(_row(number, source, event))
            for key, _ in keys:
                seen[source, key] = (number, transaction.now)
                new_keys[source, key] = number
            results.append(AppendResult(number, transaction.now, is_duplicate=False))
        if added:
            notify = {row[1] for row in added} if self._database.notify else ()
            await event_rows.add(transaction, added, [(*key, at) for key, at in new_keys.items()], notify)
        return results

    def _notify(self, events: Sequence[NewEvent], results: Sequence[AppendResult]) -> None:
        new = {event.source for event, one in zip(events, results, strict=True) if not one.is_duplicate}
        if new:
            self.on_append(new)


def _first_event(
    seen: dict[tuple[str, str], tuple[int, float]],
    source: str,
    keys: Sequence[tuple[str, float | None]],
    now: float,
) -> tuple[int, float] | None:
    """Return the number and the time of receipt of an earlier event with one of the given dedupe keys, or None."""
    for key, within in keys:
        first = seen.get((source, key))
        if first is not None and (within is None or now - first[1] <= within):
            return first
    return None


def _row(number: int, source: str, event: NewEvent) -> event_rows.Row:
    payload, attributes = json.dumps(event.payload), json.dumps(event.attributes)
    return number, source, _storable(event.dedupe_key), event.time, payload, attributes


def _stored(row: event_rows.Row) -> StoredEvent:
    number, source, dedupe_key, time, received_at, payload, attributes = row
    return StoredEvent(
        number, source, dedupe_key, time, received_at, json.loads(payload), json.loads(attributes)
    )


def _moment(since: float | None) -> float:
    return -math.inf if since is None else since


def _storable(text: str) -> str:
    """Escape NUL and incomplete Unicode characters, because SQLite and Postgres cannot store them as text."""
    if text.isascii() and "\x00" not in text:
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")
