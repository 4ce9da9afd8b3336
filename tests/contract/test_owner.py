"""The owner of an inbox: a process of another deployment launches, kills and cancels nothing."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from contract.support import RETRY_TIMEOUT, eventually, new_attempt, new_wait, register, send

from deferrable_ops.deployment import Deployment
from deferrable_ops.exceptions import NotOwner
from deferrable_ops.inbox import Inbox, WaitState
from deferrable_ops.inbox.owner import Owner
from deferrable_ops.inbox.waits.launches import ClaimLost

TRIGGER = b"an encrypted trigger"
log = logging.getLogger(__name__)


def belongs_to(inbox: Inbox, deployment: str | None, *, triggerer: bool = False) -> None:
    """Let an inbox be used by a process of a deployment; None: by one that does not know its deployment.

    :param triggerer: whether it is a triggerer, which waits for its deployment's id.
    """
    of_process = Deployment(deployment)
    of_process.is_awaited = triggerer
    inbox.owner = Owner(inbox.database, deployment=of_process, check_interval=0.02)
    for part in (inbox.waits, inbox.launches, inbox.cancellations):
        part._owner = inbox.owner  # type: ignore[attr-defined]


@pytest.fixture
async def blue_and_green(two: tuple[Inbox, Inbox]) -> tuple[Inbox, Inbox]:
    """An inbox of the deployment blue, and the same inbox as the deployment green uses it."""
    for inbox, deployment in zip(two, ("blue", "green"), strict=True):
        belongs_to(inbox, deployment)
        await inbox.owner.adopt_if_unowned()
    return two


async def owner_of(inbox: Inbox) -> str | None:
    row = await inbox.owner.current()
    return None if row is None else row.deployment


async def test_first_deployment_that_comes_adopts_an_inbox_without_an_owner(
    two: tuple[Inbox, Inbox],
) -> None:
    belongs_to(two[0], None)
    await two[0].owner.adopt_if_unowned()
    assert await owner_of(two[0]) is None
    for inbox, deployment in zip(two, ("blue", "green"), strict=True):
        belongs_to(inbox, deployment)
    await asyncio.gather(*(inbox.owner.adopt_if_unowned() for inbox in two))
    first = await owner_of(two[0])
    assert first in ("blue", "green")
    for inbox in two:
        await inbox.owner.adopt_if_unowned()
    assert await owner_of(two[1]) == first


async def test_other_deployment_registers_nothing_and_so_supersedes_nothing(
    blue_and_green: tuple[Inbox, Inbox],
) -> None:
    blue, green = blue_and_green
    first = await register(blue, new_attempt("task"))
    retried = new_attempt("task", ti_id=first.attempt.ti_id, try_number=2)
    with pytest.raises(NotOwner, match="deferrable-ops inbox adopt green"):
        await green.waits.register(new_wait(retried))
    assert [wait.id for wait in await blue.waits.find()] == [first.id]
    assert (await blue.waits.get(first.id)).state is WaitState.WAITING


async def test_other_deployment_kills_and_expires_nothing(blue_and_green: tuple[Inbox, Inbox]) -> None:
    blue, green = blue_and_green
    late = await register(blue, late=True)
    await green.waits.kill([late.id])
    assert await green.waits.expire(None) == float("inf")
    assert (await blue.waits.get(late.id)).state is WaitState.WAITING
    await blue.waits.expire(None)
    assert (await blue.waits.get(late.id)).state is WaitState.EXPIRED


async def test_other_deployment_cancels_nothing(blue_and_green: tuple[Inbox, Inbox]) -> None:
    blue, green = blue_and_green
    wait = await register(blue, trigger=TRIGGER)
    await blue.waits.kill([wait.id])
    assert await green.cancellations.claim() is None
    assert await green.cancellations.claim(wait.id) is None
    assert await blue.cancellations.claim() is not None


async def test_other_deployment_launches_only_after_it_has_adopted_the_inbox(
    blue_and_green: tuple[Inbox, Inbox], caplog: pytest.LogCaptureFixture
) -> None:
    blue, green = blue_and_green
    wait = await register(blue)
    launched = []

    async def launch() -> None:
        async with green.launches.claim(wait.id) as claim:
            assert claim is not None
            await claim.check()
            launched.append(await owner_of(green))

    launching = asyncio.create_task(launch())

    async def named() -> bool:
        return "deferrable-ops inbox adopt green" in caplog.text

    await eventually(named, "the log to name the fix")
    assert launched == []
    before = await green.owner.adopt("green")
    assert before is not None
    assert before.deployment == "blue"
    await launching
    assert launched == ["green"]
    with pytest.raises(NotOwner, match="deployment green"):
        await register(blue)


async def test_claim_of_a_former_owner_sends_no_more_requests(blue_and_green: tuple[Inbox, Inbox]) -> None:
    blue, green = blue_and_green
    wait = await register(blue)
    async with blue.launches.claim(wait.id) as claim:
        assert claim is not None
        await claim.check()
        await green.owner.adopt("green")
        with pytest.raises(ClaimLost):
            await claim.check()


async def test_triggerer_launches_but_cancels_nothing_until_it_knows_its_deployment(
    two: tuple[Inbox, Inbox],
) -> None:
    inbox = two[0]
    belongs_to(inbox, None, triggerer=True)
    wait = await register(inbox, trigger=TRIGGER)
    async with inbox.launches.claim(wait.id) as claim:
        assert claim is not None
        await claim.record("running")
    await inbox.waits.kill([wait.id])
    assert (await inbox.waits.get(wait.id)).state is WaitState.WAITING
    inbox.owner.deployment.learn("blue")
    await inbox.waits.kill([wait.id])
    assert await inbox.cancellations.claim() is not None


async def test_process_that_does_not_know_its_deployment_waits_if_the_inbox_has_an_owner(
    blue_and_green: tuple[Inbox, Inbox],
) -> None:
    unknown = blue_and_green[1]
    belongs_to(unknown, None, triggerer=True)
    with pytest.raises(NotOwner, match=r"\[deferrable_ops\] deployment"):
        await register(unknown)
    waiting = asyncio.create_task(unknown.owner.wait(log))
    await asyncio.wait([waiting], timeout=0.1)
    assert not waiting.done()
    unknown.owner.deployment.learn("blue")
    await waiting
    await register(unknown)


async def test_process_without_a_deployment_uses_an_inbox_without_an_owner_as_before(
    two: tuple[Inbox, Inbox],
) -> None:
    # dag.test(), unit tests, and an Airflow whose API server does not have this library.
    inbox = two[0]
    belongs_to(inbox, None)
    wait = await register(inbox, trigger=TRIGGER)
    await inbox.waits.kill([wait.id])
    assert await inbox.cancellations.claim() is not None
    assert await owner_of(inbox) is None


async def test_waiting_tasks_share_one_query(
    blue_and_green: tuple[Inbox, Inbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    green = blue_and_green[1]
    queries = 0
    read = green.database.read

    async def counted(work: Any) -> Any:
        nonlocal queries
        queries += 1
        return await read(work)

    green.owner = Owner(green.database, deployment=Deployment("green"), check_interval=60)
    monkeypatch.setattr(green.database, "read", counted)
    waiting = [asyncio.create_task(green.owner.wait(log)) for _ in range(50)]
    await asyncio.wait(waiting, timeout=0.2)
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert queries == 1


async def test_callback_is_stored_whoever_owns_the_inbox(shared_url: str) -> None:
    inbox = await Inbox.open(shared_url, retry_timeout=RETRY_TIMEOUT)
    wait = await register(inbox)
    await inbox.owner.adopt("blue")
    # An endpoint of its own (`deferrable-ops serve`) does not know any deployment.
    assert (await send(inbox, wait.id, {"done": True})).status == 200
    await inbox.close()
