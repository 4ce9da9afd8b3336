"""Waits for messages of SQS queues, with the triggers run like in a triggerer."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime
from functools import partial

import pytest
from unit.triggers.events.support import LONG_AGO, payloads, value_of, waiting_for_events
from unit.triggers.support import Runs, eventually, new_attempt

from deferrable_ops.events import SqsEvent
from deferrable_ops.events.specifications import Match
from deferrable_ops.operators.events import EventSensor
from deferrable_ops.outcome import Failure, Success
from deferrable_ops.testing import running
from deferrable_ops.triggers.events import sqs_source
from deferrable_ops.triggers.events.trigger import EventsTrigger
from deferrable_ops.upstreams.sqs.queues import PollerTimings, use_sqs
from real_sqs import RealSqs, name_of


@pytest.fixture(autouse=True)
def connection(server: RealSqs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the connection aws_default point to the server."""
    for name, value in server.connection().items():
        monkeypatch.setenv(name, value)


def paid(queue: str, match: Match = None, aws_conn_id: str = "aws_default") -> SqsEvent:
    return SqsEvent(queue, dedicated=True, match=match, aws_conn_id=aws_conn_id)


def waiting_for(event: SqsEvent) -> EventsTrigger:
    return waiting_for_events({"paid": event}, since=LONG_AGO)


async def until_polled(server: RealSqs, queue: str) -> None:
    await eventually(lambda: server.proxy.under_way("ReceiveMessage", name_of(queue)), "the poll")


async def test_sensor_ends_with_a_matching_message(server: RealSqs, queue: str) -> None:
    match = "status == 'done' && amount > `0` && attributes.shop == 'web'"
    sensor = EventSensor(
        task_id="paid", event=SqsEvent(queue, dedicated=True, match=match), since="2020-01-01"
    )
    async with running(sensor) as task:
        await task.wait()
        server.send(queue, {"status": "open", "amount": 1}, shop="web")
        message = server.send(queue, {"status": "done", "amount": 5}, shop="web")
        outcome = await asyncio.wait_for(task.outcome(), 20)
    assert isinstance(outcome, Success)
    came = outcome.value
    assert came["payload"] == {"status": "done", "amount": 5}
    assert came["attributes"]["attributes"] == {"shop": "web"}
    metadata = came["attributes"]["metadata"]
    assert metadata["MessageId"] == message
    assert datetime.fromisoformat(came["time"]).timestamp() * 1_000 == int(metadata["SentTimestamp"])
    assert abs(datetime.now(UTC) - datetime.fromisoformat(came["time"])).total_seconds() < 20


async def test_message_reaches_every_matching_wait_and_later_ones(
    server: RealSqs, runs: Runs, queue: str
) -> None:
    waits = [runs.start(waiting_for(paid(queue, {"n": n % 3}))) for n in range(9)]
    await until_polled(server, queue)
    polls = server.proxy.count("ReceiveMessage", name_of(queue))
    assert polls == 1
    for n in range(4):
        await asyncio.to_thread(server.send, queue, {"n": n})
    values = [payloads(await value_of(wait)) for wait in waits]
    assert values == [{"paid": {"n": n % 3}} for n in range(9)]
    await eventually(lambda: server.count(queue) == 0, "the queue to be empty")
    # No wait existed when this message arrived, and it is no longer in the queue.
    assert payloads(await value_of(runs.start(waiting_for(paid(queue, {"n": 3}))))) == {"paid": {"n": 3}}


async def test_killed_wait_resumes_in_another_process(server: RealSqs, runs: Runs, queue: str) -> None:
    attempt = new_attempt()
    trigger = waiting_for_events({"a": paid(queue, {"n": 1}), "b": paid(queue, {"n": 2})}, since=LONG_AGO)
    first = runs.start(trigger, attempt)
    await until_polled(server, queue)
    await asyncio.to_thread(server.send, queue, {"n": 1})
    await eventually(lambda: server.count(queue) == 0, "the first message to be taken")
    await first.kill_process()
    second = runs.start(trigger, attempt)
    await asyncio.to_thread(server.send, queue, {"n": 2})
    assert payloads(await value_of(second)) == {"a": {"n": 1}, "b": {"n": 2}}


async def test_message_sent_during_the_last_poll_is_available_to_the_next_wait(
    server: RealSqs, runs: Runs
) -> None:
    queue = server.create_queue("one-after-another", visibility=120)
    for n in range(5):
        run = runs.start(waiting_for(paid(queue, {"n": n})))
        await until_polled(server, queue)
        began = time.monotonic()
        await asyncio.to_thread(server.send, queue, {"n": n})
        await value_of(run)
        assert time.monotonic() - began < 10, "it was hidden"


async def test_thread_ends_after_the_last_poll(server: RealSqs, runs: Runs, queue: str) -> None:
    run = runs.start(waiting_for(paid(queue)))
    await until_polled(server, queue)
    await asyncio.to_thread(server.send, queue, "first")
    await value_of(run)
    await until_polled(server, queue)
    await asyncio.to_thread(server.send, queue, "ends the last poll")
    names = [thread.name for thread in threading.enumerate()]
    assert "deferrable-ops sqs" in names
    await eventually(
        lambda: "deferrable-ops sqs" not in [thread.name for thread in threading.enumerate()],
        "the thread to end",
    )
    assert server.count(queue) == 0


async def test_order_of_a_group_is_the_order_of_the_events(server: RealSqs, runs: Runs, ordered: str) -> None:
    match = "n >= `0`"
    server.send_all(ordered, [{"n": n} for n in range(25)], group="a")
    server.send_all(ordered, [{"last": True}], group="a")
    trigger = waiting_for_events(
        {"rows": paid(ordered, match), "end": paid(ordered, {"last": True})}, since=LONG_AGO, keep="all"
    )
    value = payloads(await value_of(runs.start(trigger)))
    assert value["rows"] == [{"n": n} for n in range(25)]


async def test_refusal_fails_the_wait_with_the_reason(
    server: RealSqs, runs: Runs, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = partial(use_sqs, timings=PollerTimings(refused_after=0.0))
    monkeypatch.setattr(sqs_source, "use_sqs", soon)
    server.proxy.fail("ReceiveMessage", 403, "AccessDenied")
    outcome = await runs.start(waiting_for(paid(queue))).outcome()
    assert isinstance(outcome, Failure)
    assert "may not call sqs:ReceiveMessage" in outcome.reason


async def test_missing_connection_fails_the_wait(runs: Runs, queue: str) -> None:
    outcome = await runs.start(waiting_for(paid(queue, aws_conn_id="aws_payments"))).outcome()
    assert isinstance(outcome, Failure)
    assert "there is no connection 'aws_payments'" in outcome.reason


async def test_large_message_is_logged(
    server: RealSqs, runs: Runs, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    taking = runs.start(waiting_for(paid(queue, "attributes.shop == 'web' && !payload")))
    runs.start(waiting_for(paid(queue, {"never": True})))
    await until_polled(server, queue)
    await asyncio.to_thread(server.send, queue, "x" * 500_000, shop="web")
    value = await value_of(taking)
    assert value["paid"]["attributes"]["metadata"]["dropped_payload_bytes"] == 500_000
    await eventually(lambda: "max_payload_bytes" in caplog.text, "the other wait's log to say it")
