"""Callbacks: judged against the wait they are for, recorded, and answered with a receipt, in one transaction.

The order of the checks is the contract of ``docs/callbacks.md``: a key reused with other content, what was recorded
before, a wait that is abandoned, a wait that is settled, and only then an effect.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final

from sqlalchemy import bindparam, insert, or_, select, tuple_, update

from deferrable_ops.inbox.database import Database, Transaction
from deferrable_ops.inbox.group_commit import GroupCommit
from deferrable_ops.inbox.judgement import judge
from deferrable_ops.inbox.schema import callbacks, waits
from deferrable_ops.inbox.wait import ABANDONED, State, state_of
from deferrable_ops.outcome import Outcome, outcome_to_json

_REFUSALS_KEPT: Final = 100  # a wait, so that a service that never stops calling cannot fill the disk
UNKNOWN_WAIT: Final = (
    "this endpoint's inbox has never seen this wait; do the endpoint and the triggerer share one inbox_url?"
)


class Verb(StrEnum):
    """What a callback asks for."""

    POST = "post"  # judged by the operator's expressions; without any, a success
    SUCCESS = "success"
    FAILURE = "failure"
    SKIP = "skip"
    HEARTBEAT = "heartbeat"


@dataclass(frozen=True, slots=True)
class Callback:
    """One callback.

    :param body: the request's body: a JSON text.
    :param source: who sent it, for the audit: ``http``, or ``cli`` with a user's name.
    """

    wait_id: str
    verb: Verb
    body: bytes
    payload: Any
    source: str = "http"
    idempotency_key: str | None = None

    @property
    def digest(self) -> bytes:
        """What makes two callbacks the same: their verb and their body."""
        return sha256(self.verb.encode() + b"\0" + self.body).digest()


@dataclass(frozen=True, slots=True)
class Receipt:
    """The answer to a callback.

    :param status: the HTTP status.
    :param body: a JSON object; byte for byte the same when the same callback comes again.
    """

    status: int
    body: str


class Callbacks:
    """Records callbacks."""

    def __init__(self, database: Database) -> None:
        self.record: GroupCommit[Callback, Receipt] = GroupCommit(database, self._record_all)
        """Return the receipt of a callback, after its effect is committed."""

    async def _record_all(self, transaction: Transaction, batch: list[Callback]) -> list[Receipt]:
        ledger = await _Ledger.read(transaction, batch)
        receipts = [ledger.receive(callback) for callback in batch]
        await ledger.write()
        return receipts


@dataclass(slots=True)
class _Standing:
    """A wait as the callbacks of a batch find and leave it."""

    id: str
    state: State
    expected: dict[str, Any]
    expired: bool
    heartbeat_timeout: float | None
    refused: int
    outcome: Outcome | None = None
    progress: Any = None
    beaten: bool = False
    settled: bool = False


@dataclass(slots=True)
class _Ledger:
    """The waits that a batch is for, what was recorded of them, and what the batch adds."""

    transaction: Transaction
    standings: dict[str, _Standing]
    by_key: dict[tuple[str, str], tuple[bytes, Receipt]]
    by_digest: dict[tuple[str, bytes], Receipt]
    added: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    async def read(cls, transaction: Transaction, batch: list[Callback]) -> _Ledger:
        ids = {callback.wait_id for callback in batch}
        query = select(
            waits.c.id,
            waits.c.state,
            waits.c.expected,
            waits.c.deadline,
            waits.c.heartbeat_timeout,
            waits.c.refused,
        )
        query = query.where(waits.c.id.in_(ids)).order_by(waits.c.id).with_for_update()
        standings = {
            row.id: _standing(row, transaction.now) for row in await transaction.connection.execute(query)
        }
        digests = [(callback.wait_id, callback.digest) for callback in batch]
        keys = [
            (callback.wait_id, callback.idempotency_key) for callback in batch if callback.idempotency_key
        ]
        recorded = select(
            callbacks.c.wait_id,
            callbacks.c.digest,
            callbacks.c.idempotency_key,
            callbacks.c.status,
            callbacks.c.receipt,
        ).order_by(callbacks.c.id.desc())
        same_content = tuple_(callbacks.c.wait_id, callbacks.c.digest).in_(digests)
        same_key = tuple_(callbacks.c.wait_id, callbacks.c.idempotency_key).in_(keys) if keys else None
        recorded = recorded.where(same_content if same_key is None else or_(same_content, same_key))
        ledger = cls(transaction, standings, {}, {})
        for row in await transaction.connection.execute(recorded):
            ledger._remember(row.wait_id, row.digest, row.idempotency_key, Receipt(row.status, row.receipt))
        return ledger

    def receive(self, callback: Callback) -> Receipt:
        standing = self.standings.get(callback.wait_id)
        if standing is None:
            return _receipt(404, error=UNKNOWN_WAIT)
        return (
            self._recorded_before(callback, standing)
            or self._refuse(callback, standing)
            or self._accept(callback, standing)
        )

    async def write(self) -> None:
        now, version, connection = self.transaction.now, self.transaction.version, self.transaction.connection
        if self.added:
            await connection.execute(insert(callbacks), self.added)
        settled = [standing for standing in self.standings.values() if standing.settled]
        if settled:
            await connection.execute(
                update(waits)
                .where(waits.c.id == bindparam("wait"))
                .values(
                    state=bindparam("new_state"),
                    outcome=bindparam("new_outcome"),
                    settled_at=now,
                    last_beat=now,
                    version=version,
                ),
                [
                    {
                        "wait": standing.id,
                        "new_state": standing.state,
                        "new_outcome": _outcome_text(standing.outcome),
                    }
                    for standing in settled
                ],
            )
        beaten = [
            standing for standing in self.standings.values() if standing.beaten and not standing.settled
        ]
        if beaten:
            await connection.execute(
                update(waits)
                .where(waits.c.id == bindparam("wait"))
                .values(last_beat=now, beat_due=now + waits.c.heartbeat_timeout),
                [{"wait": standing.id} for standing in beaten],
            )
        progressed = [standing for standing in beaten if standing.progress is not None]
        if progressed:
            await connection.execute(
                update(waits)
                .where(waits.c.id == bindparam("wait"))
                .values(progress=bindparam("new_progress"), version=version),
                [
                    {"wait": standing.id, "new_progress": json.dumps(standing.progress)}
                    for standing in progressed
                ],
            )
        refused = {row["wait_id"] for row in self.added if not row["accepted"]}
        if refused:
            await connection.execute(
                update(waits).where(waits.c.id == bindparam("wait")).values(refused=bindparam("count")),
                [{"wait": wait_id, "count": self.standings[wait_id].refused} for wait_id in refused],
            )
        self.transaction.changed.update(standing.id for standing in settled + progressed)

    def _recorded_before(self, callback: Callback, standing: _Standing) -> Receipt | None:
        if callback.idempotency_key is not None:
            known = self.by_key.get((callback.wait_id, callback.idempotency_key))
            if known is not None and known[0] != callback.digest:
                return _receipt(
                    422, error="this Idempotency-Key came before with other content; use a new one"
                )
            if known is not None:
                return known[1]
        if callback.verb is Verb.HEARTBEAT:  # the next one says the same on purpose
            return None
        recorded = self.by_digest.get((callback.wait_id, callback.digest))
        if recorded is not None and standing.state is State.WAITING and not standing.expired:
            standing.beaten = True  # progress that says the same again is still a sign of life
        return recorded

    def _refuse(self, callback: Callback, standing: _Standing) -> Receipt | None:
        if standing.expired:
            receipt = _receipt(410, state=State.EXPIRED, error="the wait's deadline has passed")
        elif standing.state in ABANDONED:
            receipt = _receipt(
                410, state=standing.state, error=f"the wait is {standing.state}: nobody waits any more"
            )
        elif standing.state is not State.WAITING:
            receipt = _receipt(
                409, state=standing.state, error=f"the wait is settled already: {standing.state}"
            )
        else:
            return None
        if standing.refused < _REFUSALS_KEPT:
            standing.refused += 1
            self._add(callback, receipt, accepted=False, keep_payload=True)
        return receipt

    def _accept(self, callback: Callback, standing: _Standing) -> Receipt:
        standing.beaten = True
        judgement = judge(callback.verb, callback.payload, standing.expected)
        received_at = datetime.fromtimestamp(self.transaction.now, UTC).isoformat()
        if judgement.outcome is None:
            if judgement.progress is not None:
                standing.progress = judgement.progress
            note = {} if judgement.note is None else {"note": judgement.note}
            status = 200 if callback.verb is Verb.HEARTBEAT else 202
            receipt = _receipt(status, wait=standing.id, state=State.WAITING, received_at=received_at, **note)
        else:
            standing.outcome, standing.state, standing.settled = (
                judgement.outcome,
                state_of(judgement.outcome),
                True,
            )
            receipt = _receipt(200, wait=standing.id, state=standing.state, received_at=received_at)
        if callback.verb is not Verb.HEARTBEAT or callback.idempotency_key is not None:
            self._add(callback, receipt, accepted=True, keep_payload=standing.settled)
        return receipt

    def _add(self, callback: Callback, receipt: Receipt, *, accepted: bool, keep_payload: bool) -> None:
        self.added.append(
            {
                "wait_id": callback.wait_id,
                "verb": callback.verb,
                "digest": callback.digest,
                "idempotency_key": callback.idempotency_key,
                "source": callback.source,
                "received_at": self.transaction.now,
                "status": receipt.status,
                "receipt": receipt.body,
                "payload": callback.body.decode(errors="replace") if keep_payload else None,
                "accepted": accepted,
            }
        )
        self._remember(callback.wait_id, callback.digest, callback.idempotency_key, receipt)

    def _remember(self, wait_id: str, digest: bytes, key: str | None, receipt: Receipt) -> None:
        self.by_digest[wait_id, digest] = receipt
        if key is not None:
            self.by_key[wait_id, key] = (digest, receipt)


def _standing(row: Any, now: float) -> _Standing:
    return _Standing(
        id=row.id,
        state=State(row.state),
        expected=json.loads(row.expected),
        expired=row.state == State.WAITING and row.deadline <= now,
        heartbeat_timeout=row.heartbeat_timeout,
        refused=row.refused,
    )


def _receipt(status: int, **body: Any) -> Receipt:
    return Receipt(status, json.dumps(body))


def _outcome_text(outcome: Outcome | None) -> str | None:
    return None if outcome is None else json.dumps(outcome_to_json(outcome))
