"""Queues of moto's SQS server, polled as the triggers do."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import defaultdict
from contextlib import ExitStack

from deferrable_ops.upstreams.sqs.queues import SqsPollers
from real_sqs import RealSqs, Stored, name_of


async def test_messages_are_stored_and_then_deleted(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    server.send_all(queue, [{"n": n} for n in range(25)])
    with stored.subscribed(sqs, queue):
        await stored.until_count(25)
        await stored.until(lambda: server.count(queue) == 0, "the queue to be empty")
    assert sorted(payload["n"] for payload in stored.payloads) == list(range(25))
    assert stored.again == 0
    assert stored.threads == {threading.get_ident()}, "stored on another event loop"


async def test_message_is_stored_soon_after_it_was_sent(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    with stored.subscribed(sqs, queue):
        await stored.until(lambda: server.proxy.under_way("ReceiveMessage", name_of(queue)), "the poll")
        for count in range(1, 6):
            sent = time.monotonic()
            await asyncio.to_thread(server.send, queue, {"n": count})
            await stored.until_count(count)
            assert time.monotonic() - sent < 2.0


async def test_all_waits_of_a_queue_share_one_long_poll(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    name, proxy = name_of(queue), server.proxy
    with ExitStack() as waits:
        for _ in range(50):
            waits.enter_context(stored.subscribed(sqs, queue))
        await stored.until(lambda: proxy.under_way("ReceiveMessage", name), "the poll")
        used, began = server.cpu_seconds(), time.monotonic()
        # A server without long polling would be polled again within this time.
        await stored.until(lambda: time.monotonic() - began > 3, "a while")
        assert proxy.count("ReceiveMessage", name) == 1
        assert proxy.count("GetQueueAttributes", name) == 1
        assert server.cpu_seconds() - used < 0.5, "the server spins instead of waiting"
    (call,) = proxy.calls_of("ReceiveMessage", name)
    parameters = json.loads(call.request)
    assert (parameters["WaitTimeSeconds"], parameters["MaxNumberOfMessages"]) == (20, 10)


async def test_order_of_each_group_is_kept(
    server: RealSqs, sqs: SqsPollers, stored: Stored, ordered: str
) -> None:
    for begin in range(0, 40, 10):
        for group in "abc":
            rows = [{"group": group, "n": n} for n in range(begin, begin + 10)]
            server.send_all(ordered, rows, group=group)
    with stored.subscribed(sqs, ordered):
        await stored.until_count(120, seconds=60)
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for payload in stored.payloads:
        groups[payload["group"]].append(payload["n"])
    assert groups == {group: list(range(40)) for group in "abc"}


async def test_more_receivers_start_under_load(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str, ordered: str
) -> None:
    for url in (queue, ordered):
        group = {"group": "a"} if url == ordered else {}
        server.send_all(url, list(range(100)), **group)
    with stored.subscribed(sqs, queue), stored.subscribed(sqs, ordered):
        await stored.until_count(200, seconds=60)
        await stored.until(lambda: server.count(queue) + server.count(ordered) == 0, "empty queues")
    requests = [json.loads(call.request) for call in server.proxy.calls_of("ReceiveMessage", name_of(queue))]
    assert {parameters["WaitTimeSeconds"] for parameters in requests} == {0, 20}
    requests = [
        json.loads(call.request) for call in server.proxy.calls_of("ReceiveMessage", name_of(ordered))
    ]
    assert {parameters["WaitTimeSeconds"] for parameters in requests} == {20}


async def test_large_message_is_stored_without_its_payload(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    # SQS accepts up to 1 MiB.
    large = "x" * 900_000
    message = server.send(queue, large, shop="web")
    server.send(queue, "small")
    with stored.subscribed(sqs, queue):
        await stored.until_count(2)
        await stored.until(lambda: server.count(queue) == 0, "the queue to be empty")
    by_id = {event.dedupe_key: event for event in stored.events.values()}
    kept = by_id[message]
    assert kept.payload is None
    assert kept.attributes["attributes"] == {"shop": "web"}
    assert kept.attributes["metadata"]["dropped_payload_bytes"] == 900_000
    assert "small" in stored.payloads
    assert [warning for warning in stored.warnings if "max_payload_bytes" in warning]
    assert not stored.failures


async def test_fifo_message_has_its_group_and_sequence_number(
    server: RealSqs, sqs: SqsPollers, stored: Stored, ordered: str
) -> None:
    server.send(ordered, {"n": 1}, group="a", shop="web")
    with stored.subscribed(sqs, ordered):
        await stored.until_count(1)
    (event,) = stored.events.values()
    metadata = event.attributes["metadata"]
    assert metadata["MessageGroupId"] == "a"
    assert metadata["SequenceNumber"]
    assert metadata["ApproximateReceiveCount"] == "1"
    assert event.time == int(metadata["SentTimestamp"]) / 1_000


async def test_queue_is_polled_only_while_it_has_readers(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    name, proxy = name_of(queue), server.proxy
    with stored.subscribed(sqs, queue) as event:
        await stored.until(lambda: proxy.under_way("ReceiveMessage", name), "the poll")
    assert not sqs.has_readers(event)
    # A message that reaches the poll in progress is not lost for the next reader.
    server.send(queue, "late")
    await asyncio.wait_for(sqs.wait_until_idle(event), 30)
    assert stored.payloads == ["late"]
    assert (server.count(queue), proxy.under_way("ReceiveMessage", name)) == (0, 0)
    polls = proxy.count("ReceiveMessage", name)
    with stored.subscribed(sqs, queue):
        server.send(queue, "again")
        await stored.until_count(2)
    assert proxy.count("ReceiveMessage", name) > polls


async def test_new_reader_joins_a_poll_in_progress(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    name, proxy = name_of(queue), server.proxy
    with stored.subscribed(sqs, queue):
        await stored.until(lambda: proxy.under_way("ReceiveMessage", name), "the poll")
    with stored.subscribed(sqs, queue):
        await asyncio.to_thread(server.send, queue, "for the second")
        await stored.until_count(1)
        await stored.until(lambda: proxy.under_way("ReceiveMessage", name), "the next poll")
        assert proxy.count("ReceiveMessage", name) == 2
        assert proxy.under_way("ReceiveMessage", name) == 1


async def test_queues_are_polled_independently(server: RealSqs, sqs: SqsPollers, stored: Stored) -> None:
    urls = [server.create_queue(f"one-of-many-{n}") for n in range(30)]
    with ExitStack() as waits:
        for url in urls:
            waits.enter_context(stored.subscribed(sqs, url))
        await stored.until(
            lambda: server.proxy.under_way("ReceiveMessage", "one-of-many") == 30, "a poll of each"
        )
        for url in urls:
            await asyncio.to_thread(server.send, url, name_of(url))
        await stored.until_count(30)
    assert set(stored.payloads) == {name_of(url) for url in urls}


async def test_two_urls_of_one_queue_are_refused(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    other = Stored()
    with stored.subscribed(sqs, queue):
        await stored.until(lambda: server.proxy.under_way("ReceiveMessage", name_of(queue)), "the poll")
        with other.subscribed(sqs, queue.replace("127.0.0.1", "localhost")):
            await other.until(lambda: other.failures, "a refusal")
        assert "are URLs of the same queue" in other.failures[0]
        assert queue in other.failures[0]
        assert not stored.failures
