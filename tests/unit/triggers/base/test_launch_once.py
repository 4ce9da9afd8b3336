"""Every feature launches its work with `launch_once`: one process at a time, and never again once it is recorded."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from unit.triggers.base.support import Scripted, in_triggerer
from unit.triggers.support import AirflowComms

import deferrable_ops
from deferrable_ops.inbox import Inbox, NewWait
from deferrable_ops.inbox.waits.launches import Claim, ClaimLost, Launches


@pytest.fixture
async def trigger(airflow_comms: AirflowComms, inbox: Inbox) -> Scripted:
    """Return a trigger that has registered its wait."""
    made = in_triggerer(Scripted("wait"))
    assert isinstance(made, Scripted)
    made.inbox = inbox
    made.current = await inbox.waits.register(NewWait(made.identify(), "scripted", 60))
    return made


async def test_recorded_work_is_not_launched_again(trigger: Scripted) -> None:
    launched = []

    async def launch(claim: Claim) -> dict[str, Any]:
        await claim.check()
        launched.append(claim)
        return {"job": 1}

    assert await trigger.launch_once(launch) == {"job": 1}
    assert trigger.current.launch_answer == {"job": 1}
    assert await trigger.launch_once(launch) == {"job": 1}
    assert len(launched) == 1


async def test_process_that_loses_its_claim_returns_what_the_other_process_launched(
    trigger: Scripted, inbox: Inbox
) -> None:
    inbox.launches = Launches(inbox.database, inbox.owner, acquire_interval=0.01)

    async def lose(claim: Claim) -> dict[str, Any]:
        await claim.release()
        async with inbox.launches.claim(trigger.current.id) as taken_over:
            assert taken_over is not None
            await taken_over.record({"job": "the other's"})
        raise ClaimLost("another process has the claim")

    assert await trigger.launch_once(lose) == {"job": "the other's"}


async def test_lost_claim_that_nothing_was_launched_with_is_acquired_again(trigger: Scripted) -> None:
    errors = [ClaimLost("the lease has expired")]

    async def launch(_claim: Claim) -> str:
        if errors:
            raise errors.pop()
        return "launched"

    async with asyncio.timeout(10):
        assert await trigger.launch_once(launch) == "launched"


async def test_nothing_is_launched_for_a_wait_that_is_over(trigger: Scripted, inbox: Inbox) -> None:
    await inbox.waits.kill([trigger.current.id])

    async def launch(_claim: Claim) -> str:
        raise AssertionError("the wait is over")

    assert await trigger.launch_once(launch) is None


async def test_failed_launch_is_not_recorded(trigger: Scripted, inbox: Inbox) -> None:
    async def launch(_claim: Claim) -> str:
        raise ConnectionError("away")

    with pytest.raises(ConnectionError):
        await trigger.launch_once(launch)
    assert (await inbox.waits.get(trigger.current.id)).launched_at is None


def test_no_feature_has_its_own_loop_around_the_claim() -> None:
    package = Path(deferrable_ops.__file__).parent
    users = [path for path in package.rglob("*.py") if "launches.claim(" in path.read_text()]
    assert [path.relative_to(package).as_posix() for path in users] == ["triggers/lifecycle/launching.py"]
