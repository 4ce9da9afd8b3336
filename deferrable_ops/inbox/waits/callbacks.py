"""Evaluates and records each callback in one transaction, and returns a receipt (the response to the callback).

A callback is checked in the order that ``docs/callbacks.md`` documents. A callback is rejected if its Idempotency-Key
was used with other content. A duplicate gets the receipt of the first callback. A callback is rejected if its wait is
over: the wait has expired, was settled or killed, or the task has a newer attempt. A callback that is neither rejected
nor a duplicate is evaluated.
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

# How many refused callbacks are recorded per wait: a service that never stops calling must not fill the disk.
_MAX_REFUSALS: Final = 100
UNKNOWN_WAIT: Final = (
    "this endpoint's inbox has never seen this wait; "
    "check that the endpoint and the triggerer have the same [deferrable_ops] inbox_url"
)


class Verb(StrEnum):
    """The kind of a callback, such as success or heartbeat."""

    # Evaluated with the operator's expressions. Without expressions it is a success.
    POST = "post"
    SUCCESS = "success"
    FAILURE = "failure"
    SKIP = "skip"
    HEARTBEAT = "heartbeat"


@dataclass(frozen=True, slots=True)
class Callback:
    """A callback that a service sent for a wait.

    :param body: the bytes of the request's body, which are JSON.
    :param payload: the JSON value of the body.
    :param source: the sender of the callback, for auditing, such as ``http``, or ``cli`` with a user's name.
    """

    wait_id: str
    verb: Verb
    body: bytes
    payload: Any
    source: str = "http"
    idempotency_key: str | None = None
    digest: bytes = field(init=False)
    """SHA-256 of the verb and the body. Callbacks with the same digest are duplicates."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", sha256(self.verb.encode() + b"\0" + self.body).digest())


@dataclass(frozen=True, slots=True)
class Receipt:
    """The response to a callback.

    :param status: the HTTP status of the response.
    :param body: the response's body, a JSON object. A duplicate gets exactly the same body as the
        first callback.
    """

    status: int
    body: str


class Callbacks:
    """Evaluates and records callbacks, and returns a receipt (the response) for each callback."""

    def __init__(self, database: Database) -> None:
        self.record: GroupCommit[Callback, Receipt] = GroupCommit(
            database, self._record_all, writers=2 if database.dialect == "postgresql" else 1
        )
        """Evaluate and record a callback, and return its receipt after the commit."""

    async def _record_all(self, transaction: Transaction, callbacks: list[Callback]) -> list[Receipt]:
        batch = await _Batch.read(transaction, callbacks)
        receipts = [batch.receive(callback) for callback in callbacks]
        await batch.write()
        return receipts


@dataclass(slots=True)
class _BatchWait:
    """A wait, together with the changes that the callbacks of one batch make to the wait.

    :param has_callbacks: whether callbacks of earlier batches are recorded for the wait.
    """

    id: str
    state: WaitState
    expected: str
    expired: bool
    refused: int
    has_callbacks: bool
    outcome: str | None = None
    progress: Any = None
    beaten: bool = False
    settled: bool = False


@dataclass(slots=True)
class _Batch:
    """A batch of callbacks, with the waits of these callbacks, the earlier callbacks of the waits, and the rows to
    write.
    """

    transaction: Transaction
    received_at: str
    waits: dict[str, _BatchWait]
    by_key: dict[tuple[str, str], tuple[bytes, Receipt]] = field(default_factory=dict)
    by_digest: dict[tuple[str, bytes], Receipt] = field(default_factory=dict)
    added: list[callback_rows.Row] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)

    @classmethod
    async def read(cls, transaction: Transaction, callbacks: list[Callback]) -> _Batch:
        rows = await callback_rows.find_waits(transaction, {callback.wait_id for callback in callbacks})
        waits = {row[0]: _batch_wait(row) for row in rows}
        received_at = datetime.fromtimestamp(transaction.now, UTC).isoformat()
        batch = cls(transaction, received_at, waits)
        # Most waits get one callback. Query earlier callbacks only for waits that have earlier callbacks.
        again = [c for c in callbacks if c.wait_id in waits and waits[c.wait_id].has_callbacks]
        if again:
            contents = [(callback.wait_id, callback.digest) for callback in again]
            keys = [(callback.wait_id, key) for callback in again if (key := callback.idempotency_key)]
            for wait_id, digest, key, status, receipt in await callback_rows.find_recorded(
                transaction, contents, keys
            ):
                batch._remember(wait_id, digest, key, Receipt(status, receipt))
        return batch

    def receive(self, callback: Callback) -> Receipt:
        wait = self.waits.get(callback.wait_id)
        if wait is None:
            return _receipt(404, error=UNKNOWN_WAIT)
        return (
            self._repeat_receipt(callback, wait)
            or self._refuse(callback, wait)
            or self._accept(callback, wait)
        )

    async def write(self) -> None:
        settled = [wait for wait in self.waits.values() if wait.settled]
        beaten = [wait for wait in self.waits.values() if wait.beaten and not wait.settled]
        progress = {wait.id: json.dumps(wait.progress) for wait in beaten if wait.progress is not None}
        await callback_rows.add_and_settle(
            self.transaction,
            self.added,
            self.digests,
            [(wait.id, wait.state, wait.outcome) for wait in settled],
        )
        await callback_rows.beat(self.transaction, [wait.id for wait in beaten])
        await callback_rows.set_progress(self.transaction, progress)
        await callback_rows.set_refused(self.transaction, self.refused)
        self.transaction.changed.update([wait.id for wait in settled], progress)

    def _repeat_receipt(self, callback: Callback, wait: _BatchWait) -> Receipt | None:
        """Return the receipt of an earlier callback with the same Idempotency-Key or content. Return None without such
        a callback.

        If the Idempotency-Key is the same but the content differs, return a receipt with status 422.
        """
        if callback.idempotency_key is not None:
            known = self.by_key.get((callback.wait_id, callback.idempotency_key))
            if known is not None and known[0] != callback.digest:
                return _receipt(
                    422, error="this Idempotency-Key was already used with other content; use a new key"
                )
            if known is not None:
                return known[1]
        if callback.verb is Verb.HEARTBEAT:
            # Successive heartbeats have the same content and are not duplicates.
            return None
        recorded = self.by_digest.get((callback.wait_id, callback.digest))
        if recorded is not None and wait.state is WaitState.WAITING and not wait.expired:
            # Repeated progress is also a heartbeat.
            wait.beaten = True
        return recorded

    def _refuse(self, callback: Callback, wait: _BatchWait) -> Receipt | None:
        if wait.expired:
            receipt = _receipt(
                410, state=WaitState.EXPIRED, error="the wait's deadline has passed; stop the work"
            )
        elif wait.state in ABANDONED:
            receipt = _receipt(
                410,
                state=wait.state,
                error=f"the wait is {wait.state}, so no task waits for this callback; stop the work",
            )
        elif wait.state is not WaitState.WAITING:
            receipt = _receipt(
                409, state=wait.state, error=f"the wait is settled already ({wait.state}); do not retry"
            )
        else:
            return None
        if wait.refused < _MAX_REFUSALS:
            wait.refused += 1
            self.refused[wait.id] = wait.refused
            self._add(callback, receipt, accepted=False, keep_payload=True)
        return receipt

    def _accept(self, callback: Callback, wait: _BatchWait) -> Receipt:
        wait.beaten = True
        evaluation = evaluate(callback.verb, callback.payload, _expected(wait.expected))
        if evaluation.outcome is None:
            if evaluation.progress is not None:
                wait.progress = evaluation.progress
            note = {} if evaluation.note is None else {"note": evaluation.note}
            status = 200 if callback.verb is Verb.HEARTBEAT else 202
            receipt = _receipt(
                status, wait=wait.id, state=WaitState.WAITING, received_at=self.received_at, **note
            )
        else:
            wait.outcome = _outcome_text(evaluation.outcome, callback)
            wait.state, wait.settled = state_of(evaluation.outcome), True
            # This is the string that json.dumps would return, at a tenth of the cost. No value needs escaping.
            receipt = Receipt(
                200,
                f'{{"wait": "{wait.id}", "state": "{wait.state}", "received_at": "{self.received_at}"}}',
            )
        if callback.verb is not Verb.HEARTBEAT or callback.idempotency_key is not None:
            self._add(callback, receipt, accepted=True, keep_payload=wait.settled)
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


def _batch_wait(row: callback_rows.Row) -> _BatchWait:
    wait_id, state, expected, late, refused, has_callbacks = row
    return _BatchWait(
        id=wait_id,
        state=WaitState(state),
        expected=expected,
        expired=state == WaitState.WAITING and bool(late),
        refused=refused,
        has_callbacks=bool(has_callbacks),
    )


@lru_cache(maxsize=1024)
def _expected(text: str) -> dict[str, Any]:
    expected: dict[str, Any] = json.loads(text)
    return expected


def _receipt(status: int, **body: Any) -> Receipt:
    return Receipt(status, json.dumps(body))


def _outcome_text(outcome: Outcome, callback: Callback) -> str:
    if isinstance(outcome, Success) and outcome.value is callback.payload:
        # The body is the JSON of this value already.
        return f'{{"outcome": "success", "value": {callback.body.decode()}}}'
    return json.dumps(outcome_to_json(outcome))
