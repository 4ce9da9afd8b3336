"""The sweep of the API server: waits whose task ended while no triggerer ran."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from unit.triggers.support import eventually, new_attempt

from deferrable_ops.deployment import Deployment
from deferrable_ops.inbox import Inbox, NewWait, Wait, WaitState
from deferrable_ops.inbox.owner import Owner
from deferrable_ops.inbox.waits.wait import WaitingAttempt
from deferrable_ops.testing import memory_inbox
from deferrable_ops.triggers.lifecycle.sweeper import Sweeper


@pytest.fixture
async def inbox() -> AsyncIterator[Inbox]:
    async with memory_inbox() as inbox:
        belongs_to(inbox, "production")
        yield inbox


def belongs_to(inbox: Inbox, deployment: str) -> None:
    """Let this process belong to a deployment."""
    inbox.owner = Owner(inbox.database, deployment=Deployment(deployment))
    for part in (inbox.waits, inbox.launches, inbox.cancellations):
        part._owner = inbox.owner


async def register(inbox: Inbox) -> Wait:
    return await inbox.waits.register(NewWait(new_attempt(), "webhook", 60))


def ended(*waits: Wait) -> Any:
    """Return a source that knows that these have ended."""

    async def find(attempts: Sequence[WaitingAttempt]) -> list[WaitingAttempt]:
        return [attempt for attempt in attempts if attempt.wait_id in {wait.id for wait in waits}]

    return find


async def test_only_waits_of_ended_attempts_are_killed(inbox: Inbox) -> None:
    gone, here = await register(inbox), await register(inbox)
    await Sweeper(inbox, ended(gone)).sweep()
    assert (await inbox.waits.get(gone.id)).state is WaitState.KILLED
    assert (await inbox.waits.get(here.id)).state is WaitState.WAITING


async def test_first_sweep_adopts_an_inbox_without_an_owner(inbox: Inbox) -> None:
    assert await inbox.owner.current() is None
    await Sweeper(inbox, ended()).sweep()
    owner = await inbox.owner.current()
    assert owner is not None
    assert owner.deployment == "production"


async def test_api_server_of_another_deployment_kills_nothing_and_logs_that_once(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    wait = await register(inbox)
    await inbox.owner.adopt_if_unowned()
    belongs_to(inbox, "staging")
    sweeper = Sweeper(inbox, ended(wait), interval=0.01)
    for _ in range(3):
        await sweeper.sweep()
    assert (await inbox.waits.get(wait.id)).state is WaitState.WAITING
    assert caplog.text.count("deferrable-ops inbox adopt staging") == 1
    # It has not kept the owner's API server from sweeping, either.
    assert await inbox.database.try_lock("sweep", 60)


@pytest.mark.parametrize("error", [OSError("the metadata database is away"), SystemExit(1)])
async def test_error_does_not_end_the_sweeps(
    inbox: Inbox, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    sweeps = 0

    async def fail(attempts: Sequence[WaitingAttempt]) -> list[WaitingAttempt]:
        nonlocal sweeps
        sweeps += 1
        raise error

    await register(inbox)
    caplog.set_level(logging.CRITICAL)
    running = asyncio.create_task(Sweeper(inbox, fail, interval=0.01).run())
    await eventually(lambda: sweeps > 2, "more sweeps")
    running.cancel()
    await asyncio.wait([running])
