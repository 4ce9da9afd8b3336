from __future__ import annotations

import asyncio

import pytest
from contract.support import RETRY_TIMEOUT, new_wait, register

from deferrable_ops.exceptions import TokenRefused, UnknownKey
from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.waits.keys import Keys


async def test_token_is_the_same_in_every_process_and_at_any_time(two: tuple[Inbox, Inbox]) -> None:
    wait = await register(two[0])
    tokens = {await inbox.keys.token(wait.id, wait.key_id) for inbox in (*two, *two)}
    assert len(tokens) == 1
    assert await two[1].keys.verify(tokens.pop()) == wait.id


async def test_token_is_valid_in_other_processes_at_once(two: tuple[Inbox, Inbox]) -> None:
    """An endpoint that read the keys a moment before the first wait made one must not refuse its callbacks."""
    with pytest.raises(UnknownKey):
        await two[1].keys.verify(f"{new_wait().attempt.wait_id}.00000000.{'A' * 43}")
    wait = await register(two[0])
    token = await two[0].keys.token(wait.id, wait.key_id)
    assert await asyncio.gather(*(two[1].keys.verify(token) for _ in range(20))) == [wait.id] * 20


async def test_processes_that_create_the_first_key_concurrently_accept_each_others_tokens(
    two: tuple[Inbox, Inbox],
) -> None:
    waits = await asyncio.gather(*(inbox.waits.register(new_wait()) for inbox in two))
    for wait, other in zip(waits, reversed(two), strict=True):
        token = await other.keys.token(wait.id, wait.key_id)
        assert await two[0].keys.verify(token) == await two[1].keys.verify(token) == wait.id


async def test_tokens_of_an_older_key_stay_valid_after_a_rotation(inbox: Inbox) -> None:
    old = await register(inbox)
    token = await inbox.keys.token(old.id, old.key_id)
    new_key = await inbox.keys.rotate(revoke_old=False)
    assert await inbox.keys.verify(token) == old.id
    assert (await register(inbox)).key_id == new_key != old.key_id


async def test_tokens_of_a_revoked_key_are_refused_everywhere(two: tuple[Inbox, Inbox]) -> None:
    for inbox in two:
        inbox.keys = Keys(inbox.database, reload_interval=0, min_query_interval=0)
    wait = await register(two[0])
    token = await two[1].keys.token(wait.id, wait.key_id)
    await two[0].keys.rotate(revoke_old=True)
    for inbox in two:
        with pytest.raises(TokenRefused) as refused:
            await inbox.keys.verify(token)
        assert not isinstance(refused.value, UnknownKey)
        with pytest.raises(TokenRefused, match="was revoked"):
            await inbox.keys.token(wait.id, wait.key_id)
    fresh = await register(two[1])
    assert await two[0].keys.verify(await two[1].keys.token(fresh.id, fresh.key_id)) == fresh.id


async def test_signature_of_one_wait_is_invalid_for_another(inbox: Inbox) -> None:
    one, other = await register(inbox), await register(inbox)
    signature = (await inbox.keys.token(one.id, one.key_id)).rpartition(".")[2]
    with pytest.raises(TokenRefused):
        await inbox.keys.verify(f"{other.id}.{other.key_id}.{signature}")


async def test_another_inbox_has_other_keys(inbox: Inbox) -> None:
    elsewhere = await Inbox.open("sqlite+aiosqlite://", retry_timeout=RETRY_TIMEOUT)
    wait = await register(inbox)
    there = await register(elsewhere, wait.attempt)
    with pytest.raises(UnknownKey):
        await inbox.keys.verify(await elsewhere.keys.token(there.id, there.key_id))
    await elsewhere.close()
