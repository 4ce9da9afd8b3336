"""Callbacks: judged against the wait they are for, recorded, and answered with a receipt, in one transaction.

The order of the checks is the contract of ``docs/callbacks.md``: a key reused with other content, what was
recorded before, a wait that is abandoned, a wait that is settled, and only then an effect.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.group_commit import GroupCommit
from deferrable_ops.inbox.waits import callback_rows
from deferrable_ops.inbox.waits.evaluation import evaluate
from deferrable_ops.inbox.waits.wait import ABANDONED, WaitState, state_of
from deferrable_ops.outcome import Outcome, Success, outcome_to_json

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
    digest: bytes = field(init=False)
    """What makes two callbacks the same: their verb and their body."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", sha256(self.verb.encode() + b"\0" + self.body).digest())


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
        self.record: GroupCommit[Callback, Receipt] = GroupCommit(
            database, self._record_all, writers=2 if database.dialect == "postgresql" else 1
        )
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
    state: WaitState
    expected: str
    expired: bool
    refused: int
    touched: bool
    outcome: str | None = None
    progress: Any = None
    beaten: bool = False
    settled: bool = False


@dataclass(slots=True)
class _Ledger:
    """The waits that a batch is for, what was recorded of them, and what the batch adds."""

    transaction: Transaction
    received_at: str
    standings: dict[str, _Standing]
    by_key: dict[tuple[str, str], tuple[bytes, Receipt]] = field(default_factory=dict)
    by_digest: dict[tuple[str, bytes], Receipt] = field(default_factory=dict)
    added: list[callback_rows.Row] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)

    @classmethod
    async def read(cls, transaction: Transaction, batch: list[Callback]) -> _Ledger:
        rows = await callback_rows.find_waits(transaction, {callback.wait_id for callback in batch})
        standings = {row[0]: _standing(row) for row in rows}
        received_at = datetime.fromtimestamp(transaction.now, UTC).isoformat()
        ledger = cls(transaction, received_at, standings)
        # Most waits are called once: nothing is recorded of one that was neither called nor refused before.
        again = [c for c in batch if c.wait_id in standings and standings[c.wait_id].touched]
        if again:
            contents = [(callback.wait_id, callback.digest) for callback in again]
            keys = [(callback.wait_id, key) for callback in again if (key := callback.idempotency_key)]
            for wait_id, digest, key, status, receipt in await callback_rows.find_recorded(
                transaction, contents, keys
            ):
                ledger._remember(wait_id, digest, key, Receipt(status, receipt))
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
        settled = [standing for standing in self.standings.values() if standing.settled]
        beaten = [
            standing for standing in self.standings.values() if standing.beaten and not standing.settled
        ]
        progress = {
            standing.id: json.dumps(standing.progress) for standing in beaten if standing.progress is not None
        }
        await callback_rows.add_and_settle(
            self.transaction,
            self.added,
            self.digests,
            [(standing.id, standing.state, standing.outcome) for standing in settled],
        )
        await callback_rows.beat(self.transaction, [standing.id for standing in beaten])
        await callback_rows.show_progress(self.transaction, progress)
        await callback_rows.count_refused(self.transaction, self.refused)
        self.transaction.changed.update([standing.id for standing in settled], progress)

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
        if recorded is not None and standing.state is WaitState.WAITING and not standing.expired:
            standing.beaten = True  # progress that says the same again is still a sign of life
        return recorded

    def _refuse(self, callback: Callback, standing: _Standing) -> Receipt | None:
        if standing.expired:
            receipt = _receipt(410, state=WaitState.EXPIRED, error="the wait's deadline has passed")
        elif standing.state in ABANDONED:
            receipt = _receipt(
                410, state=standing.state, error=f"the wait is {standing.state}: nobody waits any more"
            )
        elif standing.state is not WaitState.WAITING:
            receipt = _receipt(
                409, state=standing.state, error=f"the wait is settled already: {standing.state}"
            )
        else:
            return None
        if standing.refused < _REFUSALS_KEPT:
            standing.refused += 1
            self.refused[standing.id] = standing.refused
            self._add(callback, receipt, accepted=False, keep_payload=True)
        return receipt

    def _accept(self, callback: Callback, standing: _Standing) -> Receipt:
        standing.beaten = True
        evaluation = evaluate(callback.verb, callback.payload, _expected(standing.expected))
        if evaluation.outcome is None:
            if evaluation.progress is not None:
                standing.progress = evaluation.progress
            note = {} if evaluation.note is None else {"note": evaluation.note}
            status = 200 if callback.verb is Verb.HEARTBEAT else 202
            receipt = _receipt(
                status, wait=standing.id, state=WaitState.WAITING, received_at=self.received_at, **note
            )
        else:
            standing.outcome = _outcome_text(evaluation.outcome, callback)
            standing.state, standing.settled = state_of(evaluation.outcome), True
            # As json.dumps would write it, at a tenth of its cost: nothing in it needs to be escaped.
            receipt = Receipt(
                200,
                f'{{"wait": "{standing.id}", "state": "{standing.state}", "received_at": "{self.received_at}"}}',
            )
        if callback.verb is not Verb.HEARTBEAT or callback.idempotency_key is not None:
            self._add(callback, receipt, accepted=True, keep_payload=standing.settled)
        return receipt

    def _add(self, callback: Callback, receipt: Receipt, *, accepted: bool, keep_payload: bool) -> None:
        self.added.append(
            (
                callback.wait_id,
                callback.verb,
                callback.idempotency_key,
                callback.source,
                receipt.status,
                receipt.body,
                callback.body.decode(errors="replace") if keep_payload else None,
                accepted,
            )
        )
        self.digests.append(callback.digest)
        self._remember(callback.wait_id, callback.digest, callback.idempotency_key, receipt)

    def _remember(self, wait_id: str, digest: bytes, key: str | None, receipt: Receipt) -> None:
        self.by_digest[wait_id, digest] = receipt
        if key is not None:
            self.by_key[wait_id, key] = (digest, receipt)


def _standing(row: callback_rows.Row) -> _Standing:
    wait_id, state, expected, late, refused, touched = row
    return _Standing(
        id=wait_id,
        state=WaitState(state),
        expected=expected,
        expired=state == WaitState.WAITING and bool(late),
        refused=refused,
        touched=bool(touched),
    )


@lru_cache(maxsize=1024)
def _expected(text: str) -> dict[str, Any]:
    expected: dict[str, Any] = json.loads(text)
    return expected


def _receipt(status: int, **body: Any) -> Receipt:
    return Receipt(status, json.dumps(body))


def _outcome_text(outcome: Outcome, callback: Callback) -> str:
    if isinstance(outcome, Success) and outcome.value is callback.payload:  # it came as JSON
        return f'{{"outcome": "success", "value": {callback.body.decode()}}}'
    return json.dumps(outcome_to_json(outcome))
