"""Kafka records of a wait are stored in the inbox together with the offsets at which it resumes."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest
from unit.triggers.events.kafka_support import ORDERS, PAID, FakeKafka
from unit.triggers.events.support import LONG_AGO, payloads, post, value_of, waiting_for_events
from unit.triggers.support import Runs, eventually

from deferrable_ops.events import ChannelEvent, KafkaEvent
from deferrable_ops.exceptions import ConfigurationError, KafkaRefused
from deferrable_ops.outcome import Failure
from deferrable_ops.triggers.events.trigger import EventsTrigger


async def test_record_and_resume_offsets_are_stored_together(runs: Runs, kafka: FakeKafka) -> None:
    run = runs.start(waiting_for_events({"orders": ORDERS, "paid": PAID}, since=LONG_AGO))
    wait_id = run.attempt.wait_id
    await eventually(lambda: kafka.read_for, "the topic to be read")
    assert list(kafka.read_for) == [wait_id]
    assert (kafka.read_for[wait_id]["events"], kafka.read_for[wait_id]["offsets"]) == ((ORDERS, PAID), None)
    assert kafka.read_for[wait_id]["since"] == datetime.fromisoformat(LONG_AGO).timestamp()

    await kafka.find(4, b'{"db": "a", "n": 1}', wait_id)
    await run.kill_process()
    assert kafka.read_for == {}
    again = runs.start(waiting_for_events({"orders": ORDERS, "paid": PAID}, since=LONG_AGO), run.attempt)
    await eventually(lambda: kafka.read_for, "the topic to be read again")
    assert kafka.read_for[wait_id]["offsets"] == {"0": 5}

    await kafka.find(4, b'{"db": "a", "n": 1}', wait_id)
    await kafka.find(9, b'{"db": "b", "n": 2}', wait_id)
    value = await value_of(again)
    assert payloads(value) == {"orders": {"db": "a", "n": 1}, "paid": {"db": "b", "n": 2}}
    assert value["paid"]["attributes"]["metadata"]["offset"] == 9
    assert value["paid"]["time"] == "2023-11-14T22:13:20+00:00"
    assert set(kafka.conn_ids) == {"logs"}
    assert kafka.read_for == {}


async def test_order_of_a_partition_is_kept_when_another_wait_is_ahead(runs: Runs, kafka: FakeKafka) -> None:
    ahead = runs.start(waiting_for_events({"all": ORDERS, "end": PAID}, since=LONG_AGO))
    await eventually(lambda: len(kafka.read_for) == 1, "the one ahead")
    await kafka.find(7, b'{"db": "a", "n": 7}', ahead.attempt.wait_id)
    await kafka.find(8, b'{"db": "b", "n": 8}', ahead.attempt.wait_id)
    behind = runs.start(waiting_for_events({"all": ORDERS, "end": PAID}, keep="all", since=LONG_AGO))
    await eventually(lambda: behind.attempt.wait_id in kafka.read_for, "the one behind")
    await kafka.find(3, b'{"db": "a", "n": 3}', behind.attempt.wait_id)
    await kafka.find(7, b'{"db": "a", "n": 7}', behind.attempt.wait_id)
    await kafka.find(8, b'{"db": "b", "n": 8}', behind.attempt.wait_id)
    value = await value_of(behind)
    assert [one["payload"]["n"] for one in value["all"]] == [3, 7]
    assert [one["payload"]["n"] for one in value["end"]] == [8]


async def test_order_of_a_partition_is_kept_over_a_restart(runs: Runs, kafka: FakeKafka) -> None:
    waiting = {"all": ORDERS, "end": PAID}
    ahead = runs.start(waiting_for_events(waiting, condition="all & end", since=LONG_AGO))
    behind = runs.start(waiting_for_events(waiting, keep="all", since=LONG_AGO))
    wait_id = behind.attempt.wait_id
    await eventually(lambda: len(kafka.read_for) == 2, "both")
    for offset in (7, 9):
        await kafka.find(offset, b'{"db": "a", "n": %d}' % offset, ahead.attempt.wait_id)
    for offset in (3, 7):
        await kafka.find(offset, b'{"db": "a", "n": %d}' % offset, wait_id)
    await behind.kill_process()

    again = runs.start(waiting_for_events(waiting, keep="all", since=LONG_AGO), behind.attempt)
    await eventually(lambda: wait_id in kafka.read_for, "the one behind again")
    assert kafka.read_for[wait_id]["offsets"] == {"0": 8}
    await kafka.find(8, b'{"db": "a", "n": 8}', wait_id)
    await kafka.find(9, b'{"db": "a", "n": 9}', wait_id)
    await kafka.find(10, b'{"db": "b", "n": 10}', wait_id)
    value = await value_of(again)
    assert [one["payload"]["n"] for one in value["all"]] == [3, 7, 8, 9]


async def test_event_committed_first_counts_first(runs: Runs, kafka: FakeKafka) -> None:
    waiting = {"record": ORDERS, "post": ChannelEvent("c"), "late": ChannelEvent("late")}
    run = runs.start(waiting_for_events(waiting, condition="record | late", keep="all", since=LONG_AGO))
    await eventually(lambda: kafka.read_for, "the topic to be read")
    for number in range(3):
        await post(run.inbox, "c", number)
    await kafka.find(1, b'{"db": "a", "n": 1}', run.attempt.wait_id)
    await post(run.inbox, "c", 3)
    value = await value_of(run)
    assert [one["payload"] for one in value["post"]] == [0, 1, 2]


async def test_record_without_its_payload_matches_by_its_key(runs: Runs, kafka: FakeKafka) -> None:
    by_key = KafkaEvent("orders", match={"key": "k"}, kafka_conn_id="logs")
    run = runs.start(waiting_for_events({"orders": by_key}, since=LONG_AGO))
    await eventually(lambda: kafka.read_for, "it to be read for")
    await kafka.find(4, b"x" * 300, *kafka.read_for, too_large=True)
    (came,) = (await value_of(run)).values()
    assert came["payload"] is None
    assert came["attributes"]["metadata"]["dropped_payload_bytes"] == 300


async def test_kafka_can_warn_in_the_log_and_fail_the_wait(
    runs: Runs, kafka: FakeKafka, caplog: pytest.LogCaptureFixture
) -> None:
    run = runs.start(waiting_for_events({"orders": ORDERS}, since=LONG_AGO))
    await eventually(lambda: kafka.read_for, "it to be read for")
    (reading,) = kafka.read_for.values()
    reading["listener"].warn("records were deleted")
    await eventually(lambda: "records were deleted" in caplog.text, "the warning")
    reading["listener"].fail(KafkaRefused("there is no topic orders"), False)
    assert await run.outcome() == Failure("there is no topic orders", retryable=False)


async def test_topic_that_is_refused_after_it_was_read_is_read_again_where_it_was_left(
    runs: Runs, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single refusal ends no task: a password may be rotated, or a broker may have lost its users for a moment."""
    monkeypatch.setattr(EventsTrigger, "first_retry_pause", 0.02)
    run = runs.start(waiting_for_events({"orders": ORDERS, "paid": PAID}, since=LONG_AGO))
    await eventually(lambda: kafka.read_for, "it to be read for")
    await kafka.find(1, b'{"db": "a"}', run.attempt.wait_id)
    refused = kafka.read_for[run.attempt.wait_id]["listener"]
    refused.fail(KafkaRefused("the password is wrong"), True)
    await eventually(
        lambda: kafka.read_for and kafka.read_for[run.attempt.wait_id]["listener"] is not refused, "a new run"
    )
    assert kafka.read_for[run.attempt.wait_id]["offsets"] == {"0": 2}
    await kafka.find(2, b'{"db": "b"}', run.attempt.wait_id)
    assert payloads(await value_of(run)) == {"orders": {"db": "a"}, "paid": {"db": "b"}}


async def test_unusable_connection_fails_the_wait_with_the_reason(runs: Runs, kafka: FakeKafka) -> None:
    kafka.refuses = ConfigurationError("there is no connection 'logs'")
    run = runs.start(waiting_for_events({"orders": ORDERS}, since=LONG_AGO))
    async with asyncio.timeout(20):
        assert await run.outcome() == Failure("there is no connection 'logs'", retryable=False)


async def test_connection_that_is_gone_after_a_restart_fails_no_wait(
    runs: Runs, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EventsTrigger, "first_retry_pause", 0.02)
    first = runs.start(waiting_for_events({"orders": ORDERS}, since=LONG_AGO))
    await eventually(lambda: kafka.read_for, "it to be read for")
    await first.kill_process()
    kafka.refuses = ConfigurationError("there is no connection 'logs'")
    again = runs.start(waiting_for_events({"orders": ORDERS}, since=LONG_AGO), attempt=first.attempt)
    await asyncio.wait([again.task], timeout=0.1)
    assert not again.task.done()
    kafka.refuses = None
    await eventually(lambda: kafka.read_for, "it to be read for")
    await kafka.find(1, b'{"db": "a"}', again.attempt.wait_id)
    await value_of(again)
