"""The hosts of supervisords: each supervisord has one host, the first that claims it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.daemons import DaemonLocation

NAME = "/srv/prices"


async def claim(
    inbox: Inbox, host: str = "web-1", boot_id: str = "boot-1", **fields: Any
) -> DaemonLocation | None:
    return await inbox.daemons.claim(
        NAME, host, boot_id, **{"dag_id": "prices", "run_id": "monday", **fields}
    )


async def test_second_host_gets_the_record_of_the_first(two: tuple[Inbox, Inbox]) -> None:
    assert await claim(two[0]) is None
    whose = await claim(two[1], "web-2", "boot-2")
    assert whose is not None
    assert (whose.host, whose.boot_id, whose.dag_id) == ("web-1", "boot-1", "prices")
    kept = await two[1].daemons.find(NAME)
    assert kept == whose, "the other host has changed nothing"


async def test_of_concurrent_claims_one_host_wins(two: tuple[Inbox, Inbox]) -> None:
    answers = await asyncio.gather(*(claim(two[i % 2], f"web-{i}") for i in range(8)))
    assert answers.count(None) == 1
    winner = f"web-{answers.index(None)}"
    assert {answer.host for answer in answers if answer is not None} == {winner}


async def test_same_host_can_claim_it_again_for_another_run(inbox: Inbox) -> None:
    await claim(inbox)
    first = await inbox.daemons.find(NAME)
    before = await claim(inbox, run_id="tuesday")
    now = await inbox.daemons.find(NAME)
    assert first is not None
    assert now is not None
    assert before == first
    assert (now.run_id, now.since) == ("tuesday", first.since)


async def test_claim_after_a_reboot_returns_the_previous_boot(inbox: Inbox) -> None:
    await claim(inbox)
    before = await claim(inbox, boot_id="boot-2")
    now = await inbox.daemons.find(NAME)
    assert before is not None
    assert now is not None
    assert (before.boot_id, now.boot_id) == ("boot-1", "boot-2")
    assert now.since >= before.since


async def test_allow_move_replaces_the_host(inbox: Inbox) -> None:
    await claim(inbox)
    before = await claim(inbox, "web-2", "boot-2", allow_move=True)
    now = await inbox.daemons.find(NAME)
    assert before is not None
    assert now is not None
    assert (before.host, now.host, now.boot_id) == ("web-1", "web-2", "boot-2")


async def test_only_the_recorded_host_can_release_it(inbox: Inbox) -> None:
    await claim(inbox)
    await inbox.daemons.release(NAME, "web-2")
    assert await inbox.daemons.find(NAME) is not None
    await inbox.daemons.release(NAME, "web-1")
    await inbox.daemons.release(NAME, "web-1")
    assert await inbox.daemons.find(NAME) is None
    assert await claim(inbox, "web-2") is None


async def test_forgotten_daemon_can_be_claimed_by_any_host(inbox: Inbox) -> None:
    await claim(inbox)
    forgotten = await inbox.daemons.forget(NAME)
    assert forgotten is not None
    assert forgotten.host == "web-1"
    assert await inbox.daemons.forget(NAME) is None
    assert await inbox.daemons.all() == []


@pytest.mark.parametrize("name", ["/srv/a b", "ssh_prod@web-3:/srv/é", "/srv/'; DROP TABLE x --"])
async def test_name_can_be_any_text(inbox: Inbox, name: str) -> None:
    await inbox.daemons.claim(name, "h", "b", dag_id="d", run_id="r")
    assert [daemon.name for daemon in await inbox.daemons.all()] == [name]
