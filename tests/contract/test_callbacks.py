"""The effect of a callback on its wait, and its receipt. docs/callbacks.md documents the order of the checks."""

from __future__ import annotations

import asyncio
import json

import pytest
from contract.support import callback, eventually, new_attempt, register, send
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.inbox import Inbox, WaitState
from deferrable_ops.inbox.database.schema import callbacks
from deferrable_ops.inbox.waits.callbacks import Callback, Verb
from deferrable_ops.outcome import Failure, Skip, Success

EXPRESSIONS = {"success_when": "state == 'done'", "failure_when": "state == 'failed'", "result": "rows"}


@pytest.mark.parametrize(
    ("verb", "payload", "outcome"),
    [
        (Verb.POST, {"a": [1]}, Success({"a": [1]})),
        (Verb.POST, None, Success(None)),
        (Verb.SUCCESS, "text", Success("text")),
        (Verb.FAILURE, {"reason": "disk full", "retryable": False}, Failure("disk full", retryable=False)),
        (Verb.FAILURE, {"reason": "disk full", "retryable": "false"}, Failure("disk full")),
        (Verb.FAILURE, {"reason": 7, "retryable": None}, Failure("the outside service reported a failure")),
        (Verb.SKIP, {"reason": "a holiday"}, Skip("a holiday")),
        (Verb.SKIP, None, Skip("the outside service skipped the work")),
    ],
)
async def test_verb_decides_the_outcome(inbox: Inbox, verb: Verb, payload: object, outcome: object) -> None:
    wait = await register(inbox)
    receipt = await send(inbox, wait.id, payload, verb)
    settled = await inbox.waits.get(wait.id)
    assert settled.outcome == outcome
    assert receipt.status == 200
    assert json.loads(receipt.body)["state"] == settled.state


async def test_expressions_distinguish_progress_from_the_end(inbox: Inbox) -> None:
    wait = await register(inbox, expected=EXPRESSIONS)
    assert (await send(inbox, wait.id, {"state": "running", "step": 1})).status == 202
    assert (await inbox.waits.get(wait.id)).progress == {"state": "running", "step": 1}
    assert (await send(inbox, wait.id, {"state": "done", "rows": 7})).status == 200
    assert (await inbox.waits.get(wait.id)).outcome == Success(7)


async def test_failure_when_is_evaluated_first(inbox: Inbox) -> None:
    wait = await register(inbox, expected={"success_when": "`true`", "failure_when": "`true`"})
    await send(inbox, wait.id, {})
    assert (await inbox.waits.get(wait.id)).state is WaitState.FAILED


async def test_unknown_wait_is_not_found(inbox: Inbox) -> None:
    receipt = await send(inbox, new_attempt().wait_id, 1)
    assert receipt.status == 404
    assert "has never seen this wait" in receipt.body


async def test_duplicate_callback_gets_exactly_the_original_receipt(inbox: Inbox) -> None:
    wait = await register(inbox)
    first = await send(inbox, wait.id, {"a": 1}, idempotency_key="k")
    assert await send(inbox, wait.id, {"a": 1}) == first
    assert await send(inbox, wait.id, {"a": 1}, idempotency_key="k") == first
    assert await send(inbox, wait.id, {"a": 1}, idempotency_key="another") == first


async def test_duplicates_in_one_batch_get_one_receipt(inbox: Inbox) -> None:
    wait = await register(inbox)
    receipts = await asyncio.gather(*(send(inbox, wait.id, {"a": 1}) for _ in range(20)))
    assert len(set(receipts)) == 1
    assert receipts[0].status == 200


async def test_idempotency_key_with_other_content_is_refused(inbox: Inbox) -> None:
    wait = await register(inbox)
    await send(inbox, wait.id, 1, idempotency_key="k")
    assert (await send(inbox, wait.id, 2, idempotency_key="k")).status == 422
    assert (await send(inbox, wait.id, 1, Verb.FAILURE, idempotency_key="k")).status == 422
    other = await register(inbox)
    assert (await send(inbox, other.id, 2, idempotency_key="k")).status == 200


@pytest.mark.parametrize("verb", list(Verb))
async def test_settled_wait_conflicts_with_every_other_verb(inbox: Inbox, verb: Verb) -> None:
    wait = await register(inbox)
    await send(inbox, wait.id, "first")
    receipt = await send(inbox, wait.id, "other", verb)
    assert receipt.status == 409
    assert (await inbox.waits.get(wait.id)).outcome == Success("first")
    assert await send(inbox, wait.id, "other", verb) == receipt


async def test_first_of_concurrent_callbacks_wins(two: tuple[Inbox, Inbox]) -> None:
    wait = await register(two[0])
    receipts = await asyncio.gather(*(send(two[i % 2], wait.id, i) for i in range(40)))
    accepted = [i for i, receipt in enumerate(receipts) if receipt.status == 200]
    assert len(accepted) == 1
    assert (await two[0].waits.get(wait.id)).outcome == Success(accepted[0])
    assert {receipt.status for receipt in receipts} == {200, 409}


async def test_callback_after_the_deadline_gets_410_before_the_wait_is_expired(inbox: Inbox) -> None:
    wait = await register(inbox, late=True)
    assert wait.state is WaitState.WAITING
    assert (await send(inbox, wait.id, 1)).status == 410
    assert (await send(inbox, wait.id, None, Verb.HEARTBEAT)).status == 410


async def test_callback_before_the_deadline_wins_over_a_later_expiry(inbox: Inbox) -> None:
    wait = await register(inbox, timeout=3.0)
    assert (await send(inbox, wait.id, 1)).status == 200

    async def is_past_the_deadline() -> bool:
        return await inbox.database.now() > wait.deadline

    await eventually(is_past_the_deadline, "the deadline")
    await inbox.waits.expire(None)
    assert (await inbox.waits.get(wait.id)).state is WaitState.SUCCESS


async def test_invalid_callback_does_not_fail_others_in_its_batch(inbox: Inbox) -> None:
    bad = await register(inbox)
    good = [await register(inbox) for _ in range(3)]
    # Not UTF-8: it cannot be stored.
    poison = Callback(bad.id, Verb.POST, b"\xff", payload="?")
    calls = [
        asyncio.create_task(inbox.callbacks.record(one))
        for one in [callback(good[0].id), poison, callback(good[1].id)]
    ]
    with pytest.raises(UnicodeDecodeError):
        await calls[1]
    assert [(await calls[0]).status, (await calls[2]).status] == [200, 200]
    assert (await send(inbox, good[2].id)).status == 200


@pytest.mark.parametrize("result", ["&name", "sort(@)", "to_number(a).b | join(',', @)"])
async def test_result_that_cannot_be_evaluated_fails_the_wait_with_the_reason(
    inbox: Inbox, result: str
) -> None:
    wait = await register(inbox, expected={"result": result})
    assert (await send(inbox, wait.id, {"a": 1})).status == 200
    outcome = (await inbox.waits.get(wait.id)).outcome
    assert isinstance(outcome, Failure)
    assert result in outcome.reason
    assert not outcome.retryable


async def test_expression_that_cannot_be_evaluated_is_false_and_noted_in_the_receipt(
    inbox: Inbox,
) -> None:
    wait = await register(inbox, expected={"success_when": "length(a) > `1`"})
    receipt = await send(inbox, wait.id, {"a": 1})
    assert receipt.status == 202
    assert "success_when cannot be evaluated" in receipt.body


async def test_recorded_refusals_are_limited(inbox: Inbox) -> None:
    wait = await register(inbox)
    await send(inbox, wait.id, "first")
    refused = await asyncio.gather(*(send(inbox, wait.id, i) for i in range(300)))
    assert {receipt.status for receipt in refused} == {409}

    async def count(connection: AsyncConnection) -> int:
        query = select(func.count()).where(callbacks.c.wait_id == wait.id)
        return int((await connection.execute(query)).scalar_one())

    assert await inbox.database.read(count) == 1 + 100
