"""Requests: each is carried out by one process at a time, and its answer is kept."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.requests import Request, RequestKind, RequestLost, Requests, RequestState

NAME = "/srv/prices"
RUN = {"dag_id": "prices", "run_id": "monday", "host": "web-1", "team": None}


async def add(inbox: Inbox, target: str = NAME, **options: Any) -> Request:
    return await inbox.requests.add(RequestKind.STOP, target, RUN, "ann@web-1", **options)


async def state_of(inbox: Inbox, request: Request) -> tuple[RequestState, str]:
    found = await inbox.requests.get(request.id)
    assert found is not None
    return found.state, found.answer


async def test_request_is_claimed_once_and_keeps_its_answer(two: tuple[Inbox, Inbox]) -> None:
    request = await add(two[0])
    assert await state_of(two[1], request) == (RequestState.WAITING, "")
    async with (
        two[0].requests.claim(lambda _: True) as claimed,
        two[1].requests.claim(lambda _: True) as other,
    ):
        assert claimed is not None
        assert other is None
        assert (claimed.request.target, claimed.request.arguments) == (NAME, RUN)
        assert await state_of(two[1], request) == (RequestState.RUNNING, "")
        await claimed.check()
        await claimed.finish("stopped")
    assert await state_of(two[1], request) == (RequestState.DONE, "stopped")
    async with two[1].requests.claim(lambda _: True) as again:
        assert again is None


async def test_request_is_claimed_only_by_a_process_that_reaches_its_target(inbox: Inbox) -> None:
    await add(inbox, "/srv/far")
    near = await add(inbox)
    async with inbox.requests.claim(lambda one: one.target == NAME) as claimed:
        assert claimed is not None
        assert claimed.request.id == near.id


async def test_request_of_a_process_that_died_is_taken_over(two: tuple[Inbox, Inbox]) -> None:
    await add(two[0])
    dying = Requests(two[0].database, two[0].owner, lease=0.0)
    lost = await dying._claim(lambda _: True)
    async with two[1].requests.claim(lambda _: True) as claimed:
        assert claimed is not None
        assert lost is not None
        with pytest.raises(RequestLost):
            await lost.check()
        await lost.finish("too late")
        await claimed.finish("stopped")
    assert await state_of(two[0], claimed.request) == (RequestState.DONE, "stopped")


async def test_claim_is_renewed_while_the_request_is_carried_out(two: tuple[Inbox, Inbox]) -> None:
    await add(two[0])
    requests = Requests(two[0].database, two[0].owner, lease=0.6)
    async with requests.claim(lambda _: True) as claimed:
        assert claimed is not None
        await asyncio.sleep(1.2)
        async with two[1].requests.claim(lambda _: True) as other:
            assert other is None


async def test_failed_attempt_is_repeated_after_a_pause_that_doubles(inbox: Inbox) -> None:
    request = await add(inbox)
    async with inbox.requests.claim(lambda _: True) as claimed:
        assert claimed is not None
        assert await claimed.retry_later("web-1 is away") == 30.0
    assert await state_of(inbox, request) == (RequestState.RETRYING, "web-1 is away")
    async with inbox.requests.claim(lambda _: True) as early:
        assert early is None
    found = await inbox.requests.get(request.id)
    assert found is not None
    assert found.attempts == 1


async def test_request_that_lasts_for_a_time_is_given_up_afterwards(inbox: Inbox) -> None:
    late, retried = await add(inbox, "/srv/late", lasts=0.0), await add(inbox, lasts=20.0)
    async with inbox.requests.claim(lambda _: True) as claimed:
        assert claimed is not None
        assert claimed.request.id == retried.id
        assert await claimed.retry_later("web-1 is away") is None
    assert await state_of(inbox, retried) == (RequestState.FAILED, "web-1 is away")
    state, answer = await state_of(inbox, late)
    assert state is RequestState.FAILED
    assert "no triggerer" in answer


async def test_same_request_is_made_once_while_it_is_not_done(inbox: Inbox) -> None:
    first = await add(inbox)
    assert (await add(inbox)).id == first.id
    async with inbox.requests.claim(lambda _: True) as claimed:
        assert claimed is not None
        await claimed.finish("failed", failed=True)
    assert (await state_of(inbox, first))[0] is RequestState.FAILED
    assert (await add(inbox)).id != first.id


async def test_requests_are_deleted_after_their_retention(inbox: Inbox) -> None:
    request = await add(inbox)
    assert await inbox.retention.prune_requests(days=1) == 0
    assert await inbox.retention.prune_requests(days=0) == 1
    assert await inbox.requests.get(request.id) is None
