"""The waits themselves: registered once, settled once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, and_, case, exists, false, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.exceptions import UnknownWait
from deferrable_ops.inbox.database import Database, Transaction
from deferrable_ops.inbox.group_commit import GroupCommit
from deferrable_ops.inbox.keys import Keys
from deferrable_ops.inbox.schema import waits
from deferrable_ops.inbox.wait import NewWait, State, Wait, state_of, wait_from_row
from deferrable_ops.outcome import Failure, Outcome, outcome_to_json

_ROWS_PER_QUERY = 500
_NO_HEARTBEAT = json.dumps(outcome_to_json(Failure("no heartbeat came within heartbeat_timeout")))


class Waits:
    """Registers, reads and settles waits."""

    def __init__(self, database: Database, keys: Keys) -> None:
        self._database = database
        self._keys = keys
        self.register: GroupCommit[NewWait, Wait] = GroupCommit(database, self._register_all)
        """Return the wait of an attempt, made when it is new; an older attempt that still waits is superseded."""

    async def get(self, wait_id: str) -> Wait:
        """Return a wait.

        :raises UnknownWait: this inbox has never seen it, or has pruned it.
        """
        found = await self.get_many([wait_id])
        if not found:
            raise UnknownWait(
                f"this inbox has never seen the wait {wait_id}, or has pruned it "
                "([deferrable_ops] wait_retention_days)"
            )
        return found[0]

    async def get_many(self, wait_ids: Sequence[str]) -> list[Wait]:
        """Return those of the waits that exist, in no order."""

        async def read(connection: AsyncConnection) -> list[Wait]:
            found: list[Wait] = []
            for start in range(0, len(wait_ids), _ROWS_PER_QUERY):
                chosen = waits.c.id.in_(wait_ids[start : start + _ROWS_PER_QUERY])
                found += map(wait_from_row, await connection.execute(select(waits).where(chosen)))
            return found

        return await self._database.read(read)

    async def find(
        self, *conditions: ColumnElement[bool], limit: int | None = None, after: str | None = None
    ) -> list[Wait]:
        """Return the waits that meet the conditions, by id, those after the id `after` only."""
        query = select(waits).where(*conditions).order_by(waits.c.id).limit(limit)
        if after is not None:
            query = query.where(waits.c.id > after)

        async def read(connection: AsyncConnection) -> list[Wait]:
            return [wait_from_row(row) for row in await connection.execute(query)]

        return await self._database.read(read)

    async def settle(self, wait_id: str, outcome: Outcome) -> Wait:
        """Give a wait its outcome, unless it has one, and return it as it stands. The first to settle wins.

        A wait whose deadline passed keeps the state EXPIRED, and takes the outcome that its feature gives that case.
        """

        async def write(transaction: Transaction) -> Wait:
            await transaction.connection.execute(
                update(waits)
                .where(
                    waits.c.id == wait_id,
                    waits.c.outcome.is_(None),
                    waits.c.state.in_([State.WAITING, State.EXPIRED]),
                )
                .values(
                    state=case((waits.c.state == State.EXPIRED, State.EXPIRED), else_=state_of(outcome)),
                    outcome=json.dumps(outcome_to_json(outcome)),
                    settled_at=case(
                        (waits.c.settled_at.is_(None), transaction.now), else_=waits.c.settled_at
                    ),
                    version=transaction.version,
                )
            )
            transaction.changed.add(wait_id)
            return wait_from_row(
                (await transaction.connection.execute(select(waits).where(waits.c.id == wait_id))).one()
            )

        return await self._database.write(write)

    async def kill(self, wait_ids: Iterable[str]) -> None:
        """Settle waits whose task was ended by a user or by Airflow; what they launched is due to be cancelled."""
        chosen = list(wait_ids)

        async def write(transaction: Transaction) -> None:
            for start in range(0, len(chosen), _ROWS_PER_QUERY):
                await _abandon(
                    transaction, State.KILLED, waits.c.id.in_(chosen[start : start + _ROWS_PER_QUERY])
                )

        await self._database.write(write)

    async def supersede_stale(self) -> None:
        """Settle waits whose task has a newer attempt. Two attempts that registered at the same moment need this."""

        async def write(transaction: Transaction) -> None:
            await _abandon(transaction, State.SUPERSEDED, _has_newer_attempt())

        await self._database.write(write)

    async def expire(self, beats_since: float | None) -> None:
        """Settle waits whose deadline passed, and those whose beats stopped.

        :param beats_since: since when beats could have arrived, in seconds since the epoch: before that, the endpoint
            or the watcher was down. None: no endpoint is up, so no wait can be blamed for its silence.
        """

        async def due(connection: AsyncConnection) -> bool:
            now = await self._database.clock(connection)
            ended = or_(waits.c.deadline <= now, _is_silent(now, beats_since))
            query = select(waits.c.id).where(waits.c.state == State.WAITING, ended).limit(1)
            return (await connection.execute(query)).first() is not None

        async def write(transaction: Transaction) -> None:
            await _abandon(transaction, State.EXPIRED, waits.c.deadline <= transaction.now)
            await _abandon(
                transaction, State.FAILED, _is_silent(transaction.now, beats_since), outcome=_NO_HEARTBEAT
            )

        if await self._database.read(due):
            await self._database.write(write)

    async def newer_attempt_exists(self, wait_id: str) -> bool:
        """Return whether a newer attempt of the wait's task is registered, which then owns the task."""
        query = select(exists().where(waits.c.id == wait_id, _has_newer_attempt()))

        async def read(connection: AsyncConnection) -> bool:
            return bool((await connection.execute(query)).scalar_one())

        return await self._database.read(read)

    async def _register_all(self, transaction: Transaction, new: list[NewWait]) -> list[Wait]:
        key_id = (await self._keys.current(transaction)).id
        rows = sorted((_row(wait, transaction, key_id) for wait in new), key=lambda row: str(row["id"]))
        flavour = postgresql if self._database.dialect == "postgresql" else sqlite
        await transaction.connection.execute(flavour.insert(waits).on_conflict_do_nothing(), rows)
        await _abandon(transaction, State.SUPERSEDED, _is_same_task(rows), _has_newer_attempt())
        chosen = waits.c.id.in_([row["id"] for row in rows])
        found = {
            row.id: wait_from_row(row)
            for row in await transaction.connection.execute(select(waits).where(chosen))
        }
        return [found[wait.attempt.wait_id] for wait in new]


def _row(new: NewWait, transaction: Transaction, key_id: str) -> dict[str, Any]:
    deadline = transaction.now + new.timeout
    beat_due = None if new.heartbeat_timeout is None else transaction.now + new.heartbeat_timeout
    return {
        "id": new.attempt.wait_id,
        **asdict(new.attempt),
        "feature": new.feature,
        "state": State.WAITING,
        "expected": json.dumps(new.expected),
        "created_at": transaction.now,
        "deadline": deadline if new.latest_deadline is None else min(deadline, new.latest_deadline),
        "heartbeat_timeout": new.heartbeat_timeout,
        "beat_due": beat_due,
        "trigger": new.trigger,
        "key_id": key_id,
        "version": transaction.version,
    }


async def _abandon(
    transaction: Transaction, state: State, *conditions: ColumnElement[bool], outcome: str | None = None
) -> None:
    """End the waits that meet the conditions and still wait; what they launched is due to be cancelled."""
    ended = await transaction.connection.execute(
        update(waits)
        .where(waits.c.state == State.WAITING, *conditions)
        .values(
            state=state,
            outcome=outcome,
            settled_at=transaction.now,
            cancel=case((waits.c.trigger.is_not(None), "due")),
            cancel_lease=transaction.now,
            version=transaction.version,
        )
        .returning(waits.c.id)
    )
    transaction.changed.update(ended.scalars())


def _is_silent(now: float, beats_since: float | None) -> ColumnElement[bool]:
    if beats_since is None:
        return false()
    return and_(waits.c.beat_due <= now, waits.c.heartbeat_timeout + beats_since <= now)


def _is_same_task(rows: list[dict[str, Any]]) -> ColumnElement[bool]:
    columns = ("dag_id", "run_id", "task_id", "map_index")
    return tuple_(*(waits.c[name] for name in columns)).in_(
        [tuple(row[name] for name in columns) for row in rows]
    )


def _has_newer_attempt() -> ColumnElement[bool]:
    # Airflow's ids are UUIDs of version 7, which sort by time. Alone they would trust the machines' clocks, and alone
    # the try number would take the tries of a deleted run for newer than those of the run that replaced it.
    newer = waits.alias("newer")
    same_task = [newer.c[name] == waits.c[name] for name in ("dag_id", "run_id", "task_id", "map_index")]
    came_later = and_(newer.c.ti_id > waits.c.ti_id, newer.c.created_at > waits.c.created_at)
    return exists().where(
        *same_task,
        newer.c.ti_id >= waits.c.ti_id,
        or_(newer.c.try_number > waits.c.try_number, came_later),
    )
