"""A wait ends at its deadline; events received before it count."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from unit.triggers.events.support import (
    begun,
    payloads,
    post,
    value_of,
    waiting_for,
)
from unit.triggers.support import Runs, eventually

from deferrable_ops.outcome import Failure, Skip
from deferrable_ops.triggers.events.arguments import RunTimes


async def test_deadline_names_missing_and_received_events(runs: Runs) -> None:
    run = runs.start(waiting_for("orders", "payments", "signoff", timeout=1.0))
    await begun(run)
    await post(runs.inbox, "orders")
    outcome = await run.outcome()
    assert outcome == Failure("the deadline passed; missing: payments and signoff; received: orders")


async def test_soft_fail_skips_instead(runs: Runs) -> None:
    outcome = await runs.start(waiting_for("orders", timeout=0.2, soft_fail=True)).outcome()
    assert outcome == Skip("the deadline passed; missing: orders; received: nothing")


async def test_event_received_before_the_deadline_counts_when_seen_later(runs: Runs) -> None:
    trigger = waiting_for("orders", timeout=0.8)
    run = runs.start(trigger)
    await begun(run)
    await run.kill_process()
    await post(runs.inbox, "orders", "in time")
    await eventually_after((await run.wait()).deadline)
    await runs.inbox.waits.expire(None)
    assert payloads(await value_of(runs.start(trigger, run.attempt))) == {"orders": "in time"}


async def test_event_received_after_the_deadline_does_not_count(runs: Runs) -> None:
    trigger = waiting_for("orders", timeout=0.3)
    run = runs.start(trigger)
    await begun(run)
    await run.kill_process()
    await eventually_after((await run.wait()).deadline)
    await post(runs.inbox, "orders", "late")
    outcome = await runs.start(trigger, run.attempt).outcome()
    assert isinstance(outcome, Failure)
    assert "missing: orders" in outcome.reason


async def eventually_after(moment: float) -> None:
    # SQLite's clock has milliseconds.
    await eventually(lambda: time.time() > moment + 0.001, "the deadline")


async def test_cron_timeout_ends_the_wait_at_its_next_occurrence(runs: Runs) -> None:
    run = runs.start(waiting_for("orders", cron="0 6 * * *", timezone="Asia/Tokyo"))
    await begun(run)
    deadline = datetime.fromtimestamp((await run.wait()).deadline, UTC)
    six_in_tokyo = deadline.replace(hour=21, minute=0, second=0, microsecond=0)
    assert abs(deadline - six_in_tokyo) < timedelta(seconds=5)
    assert deadline - datetime.now(UTC) < timedelta(days=1, seconds=5)


async def test_wait_never_goes_past_the_next_data_interval(runs: Runs) -> None:
    now = datetime.now(UTC)
    times = RunTimes(now, now - timedelta(hours=1), now).as_json()
    run = runs.start(
        waiting_for("orders", next_interval={"seconds": 600.0}, run_times=times, timeout=86_400.0)
    )
    await begun(run)
    assert (await run.wait()).deadline == pytest.approx(now.timestamp() + 600, abs=5)


async def test_run_without_a_data_interval_waits_until_the_next_run_starts(runs: Runs) -> None:
    started = datetime.now(UTC) - timedelta(hours=1)
    schedule: dict[str, Any] = {
        "next_interval": {"seconds": 7200.0},
        "run_times": RunTimes(started).as_json(),
    }
    run = runs.start(waiting_for("orders", **schedule))
    await begun(run)
    assert (await run.wait()).deadline == pytest.approx(started.timestamp() + 7200, abs=5)


async def test_wait_of_a_past_interval_checks_the_received_events_and_ends(runs: Runs) -> None:
    then = datetime(2026, 1, 1, tzinfo=UTC)
    times = RunTimes(datetime.now(UTC), then, then + timedelta(days=1)).as_json()
    arguments: dict[str, Any] = {"next_interval": {}, "run_times": times, "since": then.isoformat()}
    await post(runs.inbox, "orders", 1)
    assert payloads(await value_of(runs.start(waiting_for("orders", **arguments)))) == {"orders": 1}
    outcome = await runs.start(waiting_for("payments", **arguments)).outcome()
    assert outcome == Failure("the deadline passed; missing: payments; received: nothing")


async def test_wait_with_unknown_next_interval_fails_with_the_reason(runs: Runs) -> None:
    outcome = await runs.start(waiting_for("orders", next_interval={})).outcome()
    assert isinstance(outcome, Failure)
    assert "until_next_interval=True cannot be used in this DAG run" in outcome.reason
