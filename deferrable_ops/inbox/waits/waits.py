"""Registers, reads and settles waits. A wait is registered once and settled once."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    bindparam,
    case,
    exists,
    func,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.exceptions import UnknownWait
from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.group_commit import GroupCommit
from deferrable_ops.inbox.database.schema import IS_WAITING, same_task, waits
from deferrable_ops.inbox.owner import Owner
from deferrable_ops.inbox.waits.ending import cancellation_values, end_waits, expire, mark_seen
from deferrable_ops.inbox.waits.keys import Keys
from deferrable_ops.inbox.waits.ownership import has_newer_attempt, superseded_waits
from deferrable_ops.inbox.waits.wait import (
    Attempt,
    NewWait,
    Wait,
    WaitingAttempt,
    WaitState,
    state_of,
    wait_from_row,
)
from deferrable_ops.outcome import Outcome, outcome_to_json

log = logging.getLogger(__name__)

_ROWS_PER_QUERY = 500
# The key of a Postgres advisory lock.
_REGISTRATION_LOCK: Final = 0x64656673


class Waits:
    """Registers, reads and settles waits."""

    def __init__(self, database: Database, keys: Keys, owner: Owner) -> None:
        self._database = database
        self._keys = keys
        self._owner = owner
        self.register: GroupCommit[NewWait, Wait] = GroupCommit(database, self._register_all)
        """Register the wait of an attempt, unless the wait is registered already. Return the wait.

        Unsettled waits of older attempts become superseded.

        :raises NotOwner: if the inbox belongs to another deployment of Airflow.
        """
        self._save_progress: GroupCommit[tuple[str, str], None] = GroupCommit(
            database, self._save_all_progress
        )

    async def get(self, wait_id: str) -> Wait:
        """Return the wait with the given id.

        :raises UnknownWait: if the wait was never registered in this inbox, or was deleted after its retention time.
        """
        found = await self.get_many([wait_id])
        if not found:
            raise UnknownWait(_unknown(wait_id))
        return found[0]

    async def get_many(self, wait_ids: Sequence[str]) -> list[Wait]:
        """Return the waits with the given ids, in no particular order. Ids of waits that do not exist are ignored."""

        async def read(connection: AsyncConnection) -> list[Wait]:
            found: list[Wait] = []
            for start in range(0, len(wait_ids), _ROWS_PER_QUERY):
                chosen = waits.c.id.in_(wait_ids[start : start + _ROWS_PER_QUERY])
                found += _readable(await connection.execute(_select_waits().where(chosen)))
            return found

        return await self._database.read(read)

    async def missing(self, wait_ids: Collection[str]) -> set[str]:
        """Return those of the given ids for which the inbox has no wait."""

        async def read(connection: AsyncConnection) -> set[str]:
            found = await connection.execute(select(waits.c.id).where(waits.c.id.in_(wait_ids)))
            return {*wait_ids} - {*found.scalars()}

        return await self._database.read(read)

    async def waiting(self) -> list[WaitingAttempt]:
        """Return all waits in the state ``waiting``."""
        query = select(waits.c.id, waits.c.ti_id, waits.c.try_number).where(IS_WAITING)

        async def read(connection: AsyncConnection) -> list[WaitingAttempt]:
            return [WaitingAttempt(*row) for row in await connection.execute(query)]

        return await self._database.read(read)

    async def find(
        self,
        *conditions: ColumnElement[bool],
        limit: int | None = None,
        after: str | None = None,
        newest_first: bool = False,
    ) -> list[Wait]:
        """Return the waits that meet the conditions, ordered by id.

        :param limit: the largest number of waits to return; None returns all waits.
        :param after: a wait id. Only waits with a higher id are returned.
        :param newest_first: order the waits by the time of their registration, the newest first.
        """
        order = (waits.c.created_at.desc(), waits.c.id) if newest_first else (waits.c.id,)
        query = _select_waits().where(*conditions).order_by(*order).limit(limit)
        if after is not None:
            query = query.where(waits.c.id > after)

        async def read(connection: AsyncConnection) -> list[Wait]:
            return _readable(await connection.execute(query))

        return await self._database.read(read)

    async def count(self, *conditions: ColumnElement[bool]) -> int:
        """Return the number of waits that meet the conditions."""
        query = select(func.count()).select_from(waits).where(*conditions)

        async def read(connection: AsyncConnection) -> int:
            return int((await connection.execute(query)).scalar_one())

        return await self._database.read(read)

    async def settled_before(
        self, wait_ids: Sequence[str], seconds: float, *conditions: ColumnElement[bool]
    ) -> list[Wait]:
        """Return those of the given waits that were settled more than `seconds` seconds ago and meet all conditions."""

        async def read(connection: AsyncConnection) -> list[Wait]:
            before = await self._database.clock(connection) - seconds
            found: list[Wait] = []
            for start in range(0, len(wait_ids), _ROWS_PER_QUERY):
                chosen = waits.c.id.in_(wait_ids[start : start + _ROWS_PER_QUERY])
                query = _select_waits().where(chosen, waits.c.settled_at < before, *conditions)
                found += _readable(await connection.execute(query))
            return found

        return await self._database.read(read)

    async def previous_attempt(self, wait_id: str) -> Wait | None:
        """Return the wait that the same task registered before the given wait; None if there is no earlier wait."""
        mine = waits.alias("mine")
        query = (
            select(waits.c.id)
            .join(mine, same_task(mine, waits))
            .where(mine.c.id == wait_id, waits.c.id != wait_id, waits.c.created_at <= mine.c.created_at)
            .order_by(waits.c.created_at.desc(), waits.c.try_number.desc())
            .limit(1)
        )

        async def read(connection: AsyncConnection) -> str | None:
            return (await connection.execute(query)).scalar()

        found = await self._database.read(read)
        return None if found is None else await self.get(found)

    async def settle(self, wait_id: str, outcome: Outcome, *, stop_work: bool = False) -> Wait:
        """Set a wait's outcome if the wait has no outcome, and return the wait.

        An existing outcome is not replaced. A wait in the state EXPIRED keeps this state, and gets the outcome that its
        operator defines for a passed deadline.

        :param stop_work: mark the wait's external work for cancellation, because the external work may still run.
        :raises UnknownWait: if the wait was never registered in this inbox, or was deleted after its retention time.
        """

        async def write(transaction: Transaction) -> Wait:
            await transaction.connection.execute(
                update(waits)
                .where(
                    waits.c.id == wait_id,
                    waits.c.outcome.is_(None),
                    waits.c.state.in_([WaitState.WAITING, WaitState.EXPIRED]),
                )
                .values(
                    state=case(
                        (waits.c.state == WaitState.EXPIRED, WaitState.EXPIRED), else_=state_of(outcome)
                    ),
                    outcome=json.dumps(outcome_to_json(outcome)),
                    settled_at=case(
                        (waits.c.settled_at.is_(None), transaction.now), else_=waits.c.settled_at
                    ),
                    **(cancellation_values(transaction) if stop_work else {}),
                    version=transaction.version,
                )
            )
            row = (await transaction.connection.execute(_select_waits().where(waits.c.id == wait_id))).first()
            if row is None:
                raise UnknownWait(_unknown(wait_id))
            transaction.changed.add(wait_id)
            return wait_from_row(row)

        return await self._database.write(write)

    async def save_progress(self, wait_id: str, progress: Any) -> None:
        """Save a wait's progress, for the next run of its trigger. Subscriptions to the wait are not notified.

        :param progress: any JSON value.
        """
        await self._save_progress((wait_id, json.dumps(progress)))

    async def kill(self, wait_ids: Iterable[str]) -> None:
        """Settle waits as killed, because a user or Airflow has ended their task.

        The waits' external work is marked for cancellation. If this process does not belong to the inbox's owner,
        nothing is settled.
        """
        chosen = list(wait_ids)

        async def write(transaction: Transaction, batch: list[str]) -> None:
            if await self._owner.permits(transaction.connection, cancel=True):
                await end_waits(transaction, WaitState.KILLED, batch)

        for start in range(0, len(chosen), _ROWS_PER_QUERY):
            await self._database.write(partial(write, batch=chosen[start : start + _ROWS_PER_QUERY]))

    async def expire(self, beats_since: float | None) -> float:
        """Settle waits whose deadline has passed or whose heartbeats are missing.

        Return the seconds until the next deadline.

        :param beats_since: the time since which an endpoint and the watcher have been running, in seconds since the
            epoch. A task fails because of missing heartbeats only if its heartbeat timeout has passed since
            `beats_since`. If `beats_since` is None, no endpoint is running, and no task fails because of missing
            heartbeats.
        """
        return await expire(self._database, self._owner, beats_since)

    async def mark_seen(self, wait_ids: Collection[str]) -> None:
        """Record that this process runs the triggers of the given waits.

        Only waits with ``deadline_pauses`` change. If no triggerer has run the trigger of such a wait for more than
        15 s, the wait's deadline is moved by this time. Call this method every 5 s.
        """
        await mark_seen(self._database, wait_ids)

    async def newer_attempt_exists(self, wait_id: str) -> bool:
        """Return whether a newer attempt of the wait's task is registered.

        Only the newest attempt decides the task's result.
        """
        query = select(exists().where(waits.c.id == wait_id, has_newer_attempt()))

        async def read(connection: AsyncConnection) -> bool:
            return bool((await connection.execute(query)).scalar_one())

        return await self._database.read(read)

    async def _save_all_progress(self, transaction: Transaction, saved: list[tuple[str, str]]) -> list[None]:
        newest = dict(saved)
        # All transactions lock waits in the order of their ids, to avoid deadlocks.
        await transaction.connection.execute(
            update(waits)
            .where(waits.c.id == bindparam("wait"), IS_WAITING)
            .values(progress=bindparam("so_far")),
            [{"wait": wait_id, "so_far": newest[wait_id]} for wait_id in sorted(newest)],
        )
        return [None] * len(saved)

    async def _register_all(self, transaction: Transaction, new: list[NewWait]) -> list[Wait]:
        connection = transaction.connection
        await self._owner.require(connection)
        if self._database.dialect == "postgresql":
            # Without the lock, two attempts of one task that register concurrently would not see each other.
            await connection.execute(
                text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _REGISTRATION_LOCK}
            )
        key_id = (await self._keys.current(transaction)).id
        rows = [_row(wait, transaction, key_id) for wait in new]
        ids = [row["id"] for row in rows]
        await connection.execute(self._database.insert(waits).on_conflict_do_nothing(), rows)
        superseded = (await connection.execute(superseded_waits(ids))).scalars().all()
        await end_waits(transaction, WaitState.SUPERSEDED, superseded)
        found = {row.id: row for row in await connection.execute(_select_waits().where(waits.c.id.in_(ids)))}
        rows_of_new = [(found[wait.wait_id], wait) for wait in new]
        return [
            wait_from_row(row, wait, is_new=row.created_at == transaction.now) for row, wait in rows_of_new
        ]


_WAIT_COLUMNS = [
    waits.c[name]
    for name in (
        "id",
        *(field.name for field in fields(Attempt)),
        "feature",
        "state",
        "deadline",
        "created_at",
        "settled_at",
        "heartbeat_timeout",
        "last_beat",
        "key_id",
        "progress",
        "outcome",
        "launched_at",
        "launch_owner",
        "launch_answer",
        "cancel",
    )
]


def _select_waits() -> Select[Any]:
    return select(*_WAIT_COLUMNS)


def _readable(rows: Iterable[Row[Any]]) -> list[Wait]:
    found = []
    for row in rows:
        try:
            found.append(wait_from_row(row))
        except ValueError:
            # Skip a row that a newer release wrote, so that the others can be read.
            log.exception(
                "Cannot read the wait %s, which a newer release may have written; skipping this wait", row.id
            )
    return found


def _unknown(wait_id: str) -> str:
    return (
        f"this inbox has never seen the wait {wait_id}, or has deleted it after [deferrable_ops] "
        "wait_retention_days; check that all machines have the same inbox_url"
    )


def _row(new: NewWait, transaction: Transaction, key_id: str) -> dict[str, Any]:
    deadline = transaction.now + new.timeout
    if new.latest_deadline is not None:
        deadline = min(deadline, max(new.latest_deadline, transaction.now + new.time_left))
    beat_due = None if new.heartbeat_timeout is None else transaction.now + new.heartbeat_timeout
    return {
        "id": new.wait_id,
        **{field.name: getattr(new.attempt, field.name) for field in fields(Attempt)},
        "feature": new.feature,
        "state": WaitState.WAITING,
        "expected": json.dumps(new.expected),
        "created_at": transaction.now,
        "deadline": deadline,
        "heartbeat_timeout": new.heartbeat_timeout,
        "beat_due": beat_due,
        "trigger": new.trigger,
        "key_id": key_id,
        "sources": json.dumps(new.sources) if new.sources else None,
        "seen_at": transaction.now if new.deadline_pauses else None,
        "version": transaction.version,
    }
