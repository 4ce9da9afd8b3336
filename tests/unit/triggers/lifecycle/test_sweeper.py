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
from deferrable_ops.inbox.requests import RequestKind
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
    for part in (inbox.waits, inbox.launches, inbox.cancellations, inbox.requests):
        part._owner = inbox.owner


async def register(inbox: Inbox) -> Wait:
    return await inbox.waits.register(NewWait(new_attempt(), "webhook", 60))


def ended(*waits: Wait) -> Any:
    """Return a source that knows that these have ended."""

    async def find(attempts: Sequence[WaitingAttempt]) -> list[WaitingAttempt]:
        return [attempt for attempt in attempts if attempt.wait_id in {wait.id for wait in waits}]

    return find


def over(*runs: tuple[str, str]) -> Any:
    """Return a source that knows that these DAG runs are over."""

    async def find(asked: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        return [run for run in asked if run in runs]

    return find


async def test_only_waits_of_ended_attempts_are_killed(inbox: Inbox) -> None:
    gone, here = await register(inbox), await register(inbox)
    await Sweeper(inbox, ended(gone), over()).sweep()
    assert (await inbox.waits.get(gone.id)).state is WaitState.KILLED
    assert (await inbox.waits.get(here.id)).state is WaitState.WAITING


async def test_first_sweep_adopts_an_inbox_without_an_owner(inbox: Inbox) -> None:
    assert await inbox.owner.current() is None
    await Sweeper(inbox, ended(), over()).sweep()
    owner = await inbox.owner.current()
    assert owner is not None
    assert owner.deployment == "production"


async def test_api_server_of_another_deployment_kills_nothing_and_logs_that_once(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    wait = await register(inbox)
    await inbox.owner.adopt_if_unowned()
    belongs_to(inbox, "staging")
    sweeper = Sweeper(inbox, ended(wait), over(), interval=0.01)
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
    running = asyncio.create_task(Sweeper(inbox, fail, over(), interval=0.01).run())
    await eventually(lambda: sweeps > 2, "more sweeps")
    running.cancel()
    await asyncio.wait([running])


async def use_supervisord(inbox: Inbox, name: str, run_id: str, **details: Any) -> None:
    details = {"stop_on_exit": True, "is_remote": False, "team": None, **details}
    await inbox.daemons.claim(name, "web-1", "boot", dag_id="feeds", run_id=run_id, details=details)


async def test_supervisord_whose_run_is_over_becomes_one_request(inbox: Inbox) -> None:
    await use_supervisord(inbox, "/srv/over", "monday")
    await use_supervisord(inbox, "jobs:/srv/over", "monday", is_remote=True, team="data")
    await use_supervisord(inbox, "/srv/running", "tuesday")
    await use_supervisord(inbox, "/srv/kept", "monday", stop_on_exit=False)
    await inbox.daemons.claim("/srv/older-release", "web-1", "boot", dag_id="feeds", run_id="monday")
    for _ in range(2):
        await Sweeper(inbox, ended(), over(("feeds", "monday")), interval=0.0).sweep()
    found = {request.target: request for request in await inbox.requests.all()}
    assert len(await inbox.requests.all()) == 2
    assert {*found} == {"/srv/over", "jobs:/srv/over"}
    run = {"dag_id": "feeds", "run_id": "monday"}
    assert found["/srv/over"].kind == RequestKind.STOP
    assert found["/srv/over"].arguments == {**run, "host": "web-1", "team": None}
    assert found["jobs:/srv/over"].arguments == {**run, "host": None, "team": "data"}


async def test_api_server_leaves_the_machines_of_supervisords_to_triggerers(inbox: Inbox) -> None:
    waits = [
        await inbox.waits.register(NewWait(new_attempt(), feature, 60, trigger=b"sealed"))
        for feature in ("supervisor", "webhook")
    ]
    await Sweeper(inbox, ended(*waits), over()).sweep()
    supervisor, webhook = [await inbox.waits.get(wait.id) for wait in waits]
    assert supervisor.state is WaitState.KILLED
    assert (supervisor.cancel, webhook.cancel) == ("due", "due")
    # The attempt to cancel the webhook's work has a lease now. A triggerer can cancel the supervisor's work at once.
    cancellation = await inbox.cancellations.claim()
    assert cancellation is not None
    assert cancellation.wait_id == supervisor.id
