"""Registering a wait from a worker while the inbox belongs to another deployment of Airflow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from unit.triggers.support import eventually, new_attempt

from deferrable_ops.deployment import Deployment
from deferrable_ops.exceptions import NotOwner
from deferrable_ops.inbox import Inbox, NewWait
from deferrable_ops.inbox.owner import Owner
from deferrable_ops.operators.base import register_on_worker
from deferrable_ops.testing import memory_inbox

log = logging.getLogger("task")


@pytest.fixture
async def foreign_inbox() -> AsyncIterator[Inbox]:
    async with memory_inbox() as inbox:
        deployment = Deployment("staging")
        inbox.owner = inbox.waits._owner = Owner(inbox.database, deployment=deployment, check_interval=0.01)
        await inbox.owner.adopt("production")
        yield inbox


async def test_worker_waits_until_its_deployment_has_adopted_the_inbox(
    foreign_inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    new = NewWait(new_attempt(), "webhook", timeout=60)
    registering = asyncio.create_task(register_on_worker(foreign_inbox, new, log))
    await eventually(lambda: "deferrable-ops inbox adopt staging" in caplog.text, "a line in the task's log")
    assert not registering.done()
    await foreign_inbox.owner.adopt("staging")
    assert (await registering).id == new.wait_id


async def test_worker_waits_no_longer_than_the_task_would(foreign_inbox: Inbox) -> None:
    with pytest.raises(NotOwner, match="production"):
        await register_on_worker(foreign_inbox, NewWait(new_attempt(), "webhook", timeout=0.05), log)
