"""A wait for several events shows which were received and which are missing."""

from __future__ import annotations

import asyncio

import pytest
from unit.triggers.events.support import (
    begun,
    post,
    progress_kept,
    value_of,
    waiting_for,
)
from unit.triggers.support import AirflowComms, Runs, eventually

from deferrable_ops.triggers.events import progress as events_progress

pytestmark = pytest.mark.usefixtures("telling_at_once")


async def test_log_and_xcom_show_received_and_missing_events(
    runs: Runs, airflow_comms: AirflowComms, caplog: pytest.LogCaptureFixture
) -> None:
    run = runs.start(waiting_for("orders", "payments", "signoff", condition="orders & (payments | signoff)"))
    await begun(run)
    assert "Waiting for orders (channel:orders), payments (channel:payments)" in caplog.text
    assert "needed: orders and (payments or signoff)" in caplog.text
    missing_all = {"come": {}, "missing": "orders and (payments or signoff)"}
    await eventually(lambda: airflow_comms.xcoms.get("progress") == missing_all, "the first progress")
    await post(runs.inbox, "orders")
    some = {"come": {"orders": 1}, "missing": "payments or signoff"}
    await eventually(lambda: airflow_comms.xcoms.get("progress") == some, "the second progress")
    assert "Received: orders. Still waiting for: payments or signoff" in caplog.text
    await post(runs.inbox, "signoff")
    await value_of(run)
    assert airflow_comms.xcoms["progress"] == {"come": {"orders": 1, "signoff": 1}, "missing": "nothing"}


async def test_progress_is_reported_rarely_for_many_events(
    runs: Runs, airflow_comms: AirflowComms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_progress.ProgressReporter, "report_every", 60.0)
    run = runs.start(waiting_for("orders", "signoff"))
    await begun(run)
    await eventually(lambda: "progress" in airflow_comms.xcoms, "the first progress")
    for number in range(20):
        await post(runs.inbox, "orders", number)
    await post(runs.inbox, "signoff")
    await value_of(run)
    shown = [message.value["come"] for message in airflow_comms.sent if message.key == "progress"]
    assert shown == [{}, {"orders": 20, "signoff": 1}]


async def test_wait_for_one_event_shows_no_progress(runs: Runs, airflow_comms: AirflowComms) -> None:
    run = runs.start(waiting_for("orders", single=True))
    await begun(run)
    await post(runs.inbox, "orders")
    await value_of(run)
    assert "progress" not in airflow_comms.xcoms


async def test_killed_wait_pushes_no_more_progress(
    runs: Runs, airflow_comms: AirflowComms, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.start(waiting_for("orders", "signoff"))
    await begun(run)
    await eventually(lambda: "progress" in airflow_comms.xcoms, "the first progress")
    with events_progress._pushing.slot() as granted:
        # Like another wait that is pushing its XCom.
        await granted
        await post(runs.inbox, "orders")
        await progress_kept(run, {"orders": 1})
        await run.kill_process()
    async with asyncio.timeout(20):
        with events_progress._pushing.slot() as granted:
            # After the slot of the killed wait.
            await granted
    assert airflow_comms.xcoms["progress"]["come"] == {}


async def test_large_state_is_not_stored(runs: Runs, airflow_comms: AirflowComms) -> None:
    run = runs.start(waiting_for("orders", "signoff", keep="all"))
    await begun(run)
    for number in range(60):
        await post(runs.inbox, "orders", number)
    shown = {"come": {"orders": 60}, "missing": "signoff"}
    await eventually(lambda: airflow_comms.xcoms.get("progress") == shown, "the progress")
    # The state is not stored.
    async with asyncio.timeout(10):
        while (await run.wait()).progress != shown:
            await asyncio.sleep(0.01)
