"""Any sequence of callbacks and other changes settles a wait once, and every receipt agrees with its final state."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from contract.support import RETRY_TIMEOUT, new_attempt, new_wait, send
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deferrable_ops.inbox import Inbox, Wait, WaitState
from deferrable_ops.inbox.waits.callbacks import Receipt, Verb
from deferrable_ops.outcome import Failure, Success

EXPECTED = {"success_when": "done"}
callbacks = st.tuples(
    st.just("callback"),
    st.sampled_from(list(Verb)),
    st.sampled_from([None, {"done": True}, {"done": False}, {"reason": "r", "retryable": False}]),
    st.sampled_from([None, "key 1", "key 2"]),
)
events = st.lists(
    callbacks | st.tuples(st.sampled_from(["kill", "settle", "register", "retry", "expire", "silence"])),
    max_size=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(events=events, late=st.booleans(), at_once=st.booleans())
def test_wait_settles_once_and_every_answer_agrees(events: list[Any], late: bool, at_once: bool) -> None:
    asyncio.run(_play(events, late, at_once))


async def _play(events: list[Any], late: bool, at_once: bool) -> None:
    inbox = await Inbox.open("sqlite+aiosqlite://", retry_timeout=RETRY_TIMEOUT)
    attempt = new_attempt()
    new = new_wait(attempt, late=late, expected=EXPECTED, heartbeat_timeout=0.0)
    ends: list[Wait] = []

    async def happen(event: Any) -> Receipt | None:
        match event:
            case ("callback", verb, payload, key):
                receipt = await send(inbox, attempt.wait_id, payload, verb, idempotency_key=key)
                assert receipt.status in (200, 202, 409, 410, 422)
                return receipt
            case ("kill",):
                await inbox.waits.kill([attempt.wait_id])
            case ("settle",):
                await inbox.waits.settle(attempt.wait_id, Failure("settled by the trigger"))
            case ("register",):
                await inbox.waits.register(new)
            case ("retry",):
                await inbox.waits.register(
                    new_wait(
                        new_attempt(attempt.run_id, ti_id=attempt.ti_id, try_number=2), expected=EXPECTED
                    )
                )
            case ("expire",):
                await inbox.waits.expire(None)
            case ("silence",):
                await inbox.waits.expire(1.0)
        return None

    async def look(event: Any) -> None:
        receipt = await happen(event)
        wait = await inbox.waits.get(attempt.wait_id)
        if not at_once and receipt is not None and receipt.status == 202:
            assert wait.state is WaitState.WAITING or event in seen, "progress of a wait that has ended"
        seen.append(event)
        if wait.state is not WaitState.WAITING:
            ends.append(wait)

    seen: list[Any] = []
    await inbox.waits.register(new)
    if at_once:
        await asyncio.gather(*(look(event) for event in events))
    else:
        for event in events:
            await look(event)
    await inbox.close()
    # An expired wait gets its outcome later; nothing else changes after the end.
    assert len({(wait.state, wait.settled_at) for wait in ends}) <= 1
    assert len({wait.outcome for wait in ends if not isinstance(wait.outcome, Success)} - {None}) <= 1


@pytest.mark.parametrize("first", [Verb.SUCCESS, Verb.FAILURE, Verb.SKIP])
@pytest.mark.parametrize("second", list(Verb))
async def test_first_terminal_verb_wins(inbox: Inbox, first: Verb, second: Verb) -> None:
    wait = await inbox.waits.register(new_wait())
    await send(inbox, wait.id, {"n": 1}, first)
    settled = await inbox.waits.get(wait.id)
    assert (await send(inbox, wait.id, {"n": 2}, second)).status == 409
    assert await inbox.waits.get(wait.id) == settled
