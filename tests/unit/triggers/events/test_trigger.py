"""A wait for events ends with the first event that makes its condition true."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from unit.triggers.events.support import (
    LONG_AGO,
    begun,
    payloads,
    post,
    value_of,
    waiting_for,
    waiting_for_events,
)
from unit.triggers.support import Runs, eventually, new_attempt

from deferrable_ops.events import ChannelEvent
from deferrable_ops.outcome import Failure
from deferrable_ops.triggers.events import collector
from deferrable_ops.triggers.events.arguments import RunTimes
from deferrable_ops.triggers.events.trigger import EventsTrigger


def seconds_ago(seconds: float) -> str:
    return datetime.fromtimestamp(time.time() - seconds, UTC).isoformat()


async def test_value_of_one_event_has_time_and_source(runs: Runs) -> None:
    run = runs.start(waiting_for("signoff", match={"run": "r1"}, single=True))
    await begun(run)
    await post(runs.inbox, "signoff", {"run": "r2"})
    await post(runs.inbox, "signoff", {"run": "r1", "by": "ada"}, at=1e9 * 2)
    assert await value_of(run) == {
        "payload": {"run": "r1", "by": "ada"},
        "time": "2033-05-18T03:33:20+00:00",
        "source": "channel:signoff",
        "attributes": {"headers": {}, "attributes": {}, "metadata": {}},
    }


async def test_several_events_are_received_in_any_order(runs: Runs) -> None:
    run = runs.start(waiting_for("orders", "payments"))
    await begun(run)
    await post(runs.inbox, "payments", 2)
    await post(runs.inbox, "orders", 1)
    assert payloads(await value_of(run)) == {"orders": 1, "payments": 2}


async def test_events_count_from_since_on_when_the_task_starts_later(runs: Runs) -> None:
    now = time.time()
    await post(runs.inbox, "orders", "before", at=now - 3601)
    await post(runs.inbox, "orders", "after", at=now - 3500)
    run = runs.start(waiting_for("orders", since=seconds_ago(3600)))
    assert payloads(await value_of(run)) == {"orders": "after"}


async def test_events_count_from_the_start_of_the_dag_run_by_default(runs: Runs) -> None:
    now = time.time()
    await post(runs.inbox, "orders", "before the run", at=now - 100)
    await post(runs.inbox, "orders", "before the task", at=now - 50)
    started = RunTimes(start=datetime.fromtimestamp(now - 60, UTC)).as_json()
    assert payloads(await value_of(runs.start(waiting_for("orders", run_times=started)))) == {
        "orders": "before the task"
    }


@pytest.mark.parametrize("since, first", [("day", 20), ("month", 10)])
async def test_day_and_month_are_those_of_the_runs_start_in_the_dags_timezone(
    runs: Runs, since: str, first: int
) -> None:
    midnight = datetime(2026, 3, 20, tzinfo=UTC) - timedelta(hours=1)  # in Berlin
    for day in (28 - 31 - 28, 10, 20):
        await post(runs.inbox, "orders", day, at=(midnight + timedelta(days=day - 20, seconds=1)).timestamp())
    started = RunTimes(start=midnight + timedelta(hours=12)).as_json()
    run = runs.start(waiting_for("orders", since=since, timezone="Europe/Berlin", run_times=started))
    assert payloads(await value_of(run)) == {"orders": first}


@pytest.mark.parametrize(
    "keep, expected", [("first", 1), ("last", 3), ("all", [1, 2, 3])], ids=["first", "last", "all"]
)
async def test_keep_considers_events_up_to_the_one_that_ended_the_wait(
    runs: Runs, keep: Any, expected: Any
) -> None:
    for number in (1, 2, 3):
        await post(runs.inbox, "orders", number)
    await post(runs.inbox, "signoff", "yes")
    await post(runs.inbox, "orders", 4)
    run = runs.start(waiting_for("orders", "signoff", keep=keep, since=LONG_AGO))
    assert payloads(await value_of(run))["orders"] == expected


async def test_condition_ends_the_wait_without_the_events_it_does_not_need(runs: Runs) -> None:
    run = runs.start(waiting_for("orders", "payments", "signoff", condition="orders & (payments | signoff)"))
    await begun(run)
    await post(runs.inbox, "signoff", 3)
    await post(runs.inbox, "orders", 1)
    assert payloads(await value_of(run)) == {"orders": 1, "payments": None, "signoff": 3}


async def test_one_message_may_satisfy_several_names(runs: Runs) -> None:
    events = {"any": ChannelEvent("orders"), "large": ChannelEvent("orders", match="amount > `5`")}
    run = runs.start(waiting_for_events(dict(events)))
    await begun(run)
    await post(runs.inbox, "orders", "no JSON object at all")
    await post(runs.inbox, "orders", {"amount": 9})
    assert payloads(await value_of(run)) == {"any": "no JSON object at all", "large": {"amount": 9}}


async def test_each_event_reaches_only_matching_waits(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []
    to_event = collector.to_event
    monkeypatch.setattr(collector, "to_event", lambda kept: looked_at.append(kept) or to_event(kept))
    waits = [runs.start(waiting_for("orders", match={"id": number}, single=True)) for number in range(300)]
    for run in waits:
        await begun(run)
    for number in range(300):
        await post(runs.inbox, "orders", {"id": number})
    assert [(await value_of(run))["payload"]["id"] for run in waits] == list(range(300))
    # Not every event by every wait.
    assert len(looked_at) == 300


async def test_event_reaches_every_matching_wait(runs: Runs) -> None:
    waits = [runs.start(waiting_for("orders", single=True)) for _ in range(50)]
    for run in waits:
        await begun(run)
    await post(runs.inbox, "orders", "for all")
    assert {(await value_of(run))["payload"] for run in waits} == {"for all"}


async def test_finished_waits_leave_nothing_behind(runs: Runs) -> None:
    run = runs.start(waiting_for("orders"))
    await begun(run)
    killed = runs.start(waiting_for("orders"))
    await begun(killed)
    await killed.kill_process()
    await post(runs.inbox, "orders")
    await value_of(run)
    assert runs.inbox.feed.route.__self__._indexes == {}  # type: ignore[attr-defined]


async def test_since_before_the_retention_time_causes_a_warning(
    runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    await post(runs.inbox, "orders", 1)
    await runs.inbox.retention.prune_events(-1)
    run = runs.start(waiting_for("orders", since=LONG_AGO))
    await eventually(lambda: "increase [deferrable_ops] event_retention_days" in caplog.text, "a warning")
    assert not run.task.done()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"events": {}}, "events= is empty"),
        ({"events": {"a": {"type": "pulsar"}}}, "events['a']: "),
        ({"events": {"a": {"type": "channel", "name": "no spaces"}}}, "name='no spaces' is not allowed"),
        ({"events": {"a": {"type": "channel", "name": "x", "match": "status =="}}}, "is not JMESPath"),
        ({"condition": "b"}, "events= has no name 'b'"),
        ({"keep": "best"}, "keep='best' is invalid"),
        ({"since": "None"}, "since= rendered to an empty string"),
        ({"timezone": "Mars/Olympus"}, "unknown timezone"),
        ({"cron": "61 * * * *"}, "timeout="),
    ],
)
async def test_rendered_argument_that_is_wrong_fails_the_task_with_the_reason(
    runs: Runs, arguments: dict[str, Any], message: str
) -> None:
    right = {"events": {"a": {"type": "channel", "name": "x"}}}
    outcome = await runs.start(EventsTrigger(**{**right, **arguments})).outcome()
    assert isinstance(outcome, Failure)
    assert message in outcome.reason


async def test_templates_are_rendered_in_every_part_of_an_event(runs: Runs) -> None:
    events = {"orders": ChannelEvent("{{ params.channel }}", match={"run": {"day": "{{ ds }}"}})}
    trigger = waiting_for_events(dict(events), since="{{ data_interval_start }}")
    trigger.template_fields = ("events", "since")
    now = datetime.now(UTC)
    context: Any = {"params": {"channel": "orders-eu"}, "ds": "2026-11-21", "data_interval_start": now}
    trigger.render_template_fields(context)
    run = runs.start(trigger)
    await begun(run)
    await post(runs.inbox, "orders-eu", {"run": {"day": "2026-11-20"}})
    await post(runs.inbox, "orders-eu", {"run": {"day": "2026-11-21"}})
    assert payloads(await value_of(run)) == {"orders": {"run": {"day": "2026-11-21"}}}


async def test_wait_ends_when_a_user_ends_it(runs: Runs) -> None:
    run = runs.start(waiting_for("orders"))
    await begun(run)
    await runs.inbox.waits.kill([run.attempt.wait_id])
    assert isinstance(await run.outcome(), Failure)


async def test_event_is_reported_within_moments_of_its_commit(runs: Runs) -> None:
    run = runs.start(waiting_for("orders", "payments"))
    await begun(run)
    await post(runs.inbox, "orders")
    async with asyncio.timeout(5):
        await post(runs.inbox, "payments")
        await run.outcome()


def test_a_wait_shares_the_keys_of_its_attributes_with_all_others() -> None:
    # Python shares the keys of at most 30 attributes; beyond that each wait would take 1.3 kB more.
    assert len(vars(waiting_for("orders"))) < 30


def test_queued_trigger_can_be_serialized() -> None:
    trigger = waiting_for("orders", "payments", match={"id": 1}, condition="orders | payments")
    as_made = trigger.serialize()
    trigger.validate()
    assert trigger.events is None
    assert trigger.serialize() == as_made


async def test_waiting_trigger_can_be_serialized(runs: Runs) -> None:
    trigger = waiting_for("orders", match={"id": 1}, attempt=asdict(new_attempt()))
    as_made = trigger.serialize()
    task = asyncio.create_task(anext(aiter(trigger.run())))  # type: ignore[arg-type]
    await eventually(lambda: bool(runs.inbox.feed._followers), "the wait")
    assert trigger.serialize() == as_made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
