"""A wait for events resumes after a restart, in any triggerer."""

from __future__ import annotations

from typing import Any

import pytest
from unit.triggers.events.support import (
    LONG_AGO,
    begun,
    payloads,
    post,
    progress_kept,
    value_of,
    waiting_for,
)
from unit.triggers.support import Runs

from deferrable_ops.triggers.events.progress import ProgressReporter

pytestmark = pytest.mark.usefixtures("telling_at_once")


@pytest.mark.parametrize("keep, expected", [("first", 1), ("last", 2), ("all", [1, 2])])
async def test_killed_trigger_resumes(runs: Runs, keep: Any, expected: Any) -> None:
    trigger = waiting_for("orders", "signoff", keep=keep)
    run = runs.start(trigger)
    await begun(run)
    await post(runs.inbox, "orders", 1)
    await progress_kept(run, {"orders": 1})
    await run.kill_process()
    await post(runs.inbox, "orders", 2)
    await post(runs.inbox, "signoff", 3)
    again = runs.start(trigger, run.attempt)
    assert payloads(await value_of(again)) == {
        "orders": expected,
        "signoff": [3] if keep == "all" else 3,
    }


async def test_restart_keeps_events_that_were_pruned(runs: Runs) -> None:
    trigger = waiting_for("orders", "signoff")
    run = runs.start(trigger)
    await begun(run)
    await post(runs.inbox, "orders", 1)
    await progress_kept(run, {"orders": 1})
    await run.kill_process()
    assert await runs.inbox.retention.prune_events(-1) == 1
    await post(runs.inbox, "signoff", 2)
    assert payloads(await value_of(runs.start(trigger, run.attempt))) == {"orders": 1, "signoff": 2}


async def test_restart_works_without_a_stored_state(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProgressReporter, "max_state_characters", 10)
    trigger = waiting_for("orders", "signoff", keep="all")
    run = runs.start(trigger)
    await begun(run)
    await post(runs.inbox, "orders", 1)
    await run.kill_process()
    await post(runs.inbox, "signoff", 2)
    again = runs.start(trigger, run.attempt)
    assert payloads(await value_of(again)) == {"orders": [1], "signoff": [2]}
    assert (await again.wait()).progress is None


async def test_two_triggers_of_one_wait_have_the_same_outcome(runs: Runs) -> None:
    trigger = waiting_for("orders", "signoff", keep="all", since=LONG_AGO)
    one = runs.start(trigger)
    other = runs.start(trigger, one.attempt)
    for number in range(50):
        await post(runs.inbox, "orders", number)
    await post(runs.inbox, "signoff", "yes")
    value = await value_of(one)
    assert value == await value_of(other)
    assert payloads(value) == {"orders": list(range(50)), "signoff": ["yes"]}
