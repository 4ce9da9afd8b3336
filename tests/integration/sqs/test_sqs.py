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
    with stored.reading(sqs, queue):
        await stored.until_count(25)
        await stored.until(lambda: server.count(queue) == 0, "the queue to be empty")
    assert sorted(payload["n"] for payload in stored.payloads) == list(range(25))
    assert stored.again == 0
    assert stored.threads == {threading.get_ident()}, "stored on another event loop"


async def test_message_is_there_soon_after_it_was_sent(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    with stored.reading(sqs, queue):
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
            waits.enter_context(stored.reading(sqs, queue))
        await stored.until(lambda: proxy.under_way("ReceiveMessage", name), "the poll")
        used, began = server.cpu_seconds(), time.monotonic()
        # A server that answered at once would be asked again within this time.
        await stored.until(lambda: time.monotonic() - began > 3, "a while")
        assert proxy.count("ReceiveMessage", name) == 1
        assert proxy.count("GetQueueAttributes", name) == 1
        assert server.cpu_seconds() - used < 0.5, "the server does not wait, but spins"
    (call,) = proxy.calls_of("ReceiveMessage", name)
    asked = json.loads(call.request)
    assert (asked["WaitTimeSeconds"], asked["MaxNumberOfMessages"]) == (20, 10)


async def test_order_of_each_group_is_kept(
    server: RealSqs, sqs: SqsPollers, stored: Stored, ordered: str
) -> None:
    for begin in range(0, 40, 10):
        for group in "abc":
            rows = [{"group": group, "n": n} for n in range(begin, begin + 10)]
            server.send_all(ordered, rows, group=group)
    with stored.reading(sqs, ordered):
        await stored.until_count(120, seconds=60)
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for payload in stored.payloads:
        groups[payload["group"]].append(payload["n"])
    assert groups == {group: list(range(40)) for group in "abc"}


async def test_more_is_received_at_a_time_while_there_is_plenty(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str, ordered: str
) -> None:
    for url in (queue, ordered):
        group = {"group": "a"} if url == ordered else {}
        server.send_all(url, list(range(100)), **group)
    with stored.reading(sqs, queue), stored.reading(sqs, ordered):
        await stored.until_count(200, seconds=60)
        await stored.until(lambda: server.count(queue) + server.count(ordered) == 0, "empty queues")
    requests = [json.loads(call.request) for call in server.proxy.calls_of("ReceiveMessage", name_of(queue))]
    assert {asked["WaitTimeSeconds"] for asked in requests} == {0, 20}
    requests = [
        json.loads(call.request) for call in server.proxy.calls_of("ReceiveMessage", name_of(ordered))
    ]
    assert {asked["WaitTimeSeconds"] for asked in requests} == {20}


async def test_large_message_is_kept_without_its_payload(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    large = "x" * 900_000  # SQS takes up to 1 MiB
    message = server.send(queue, large, shop="web")
    server.send(queue, "small")
    with stored.reading(sqs, queue):
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


async def test_message_says_its_group_and_its_place_in_the_order(
    server: RealSqs, sqs: SqsPollers, stored: Stored, ordered: str
) -> None:
    server.send(ordered, {"n": 1}, group="a", shop="web")
    with stored.reading(sqs, ordered):
        await stored.until_count(1)
    (event,) = stored.events.values()
    metadata = event.attributes["metadata"]
    assert metadata["MessageGroupId"] == "a"
    assert metadata["SequenceNumber"]
    assert metadata["ApproximateReceiveCount"] == "1"
    assert event.time == int(metadata["SentTimestamp"]) / 1_000


async def test_queue_is_polled_while_somebody_needs_it_and_again_later(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    name, proxy = name_of(queue), server.proxy
    with stored.reading(sqs, queue) as event:
        await stored.until(lambda: proxy.under_way("ReceiveMessage", name), "the poll")
    assert not sqs.has_readers(event)
    # What comes to the poll under way is not lost to whoever waits next.
    server.send(queue, "late")
    await asyncio.wait_for(sqs.wait_until_idle(event), 30)
    assert stored.payloads == ["late"]
    assert (server.count(queue), proxy.under_way("ReceiveMessage", name)) == (0, 0)
    polls = proxy.count("ReceiveMessage", name)
    with stored.reading(sqs, queue):
        server.send(queue, "again")
        await stored.until_count(2)
    assert proxy.count("ReceiveMessage", name) > polls


async def test_who_comes_while_the_last_poll_is_under_way_joins_it(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    name, proxy = name_of(queue), server.proxy
    with stored.reading(sqs, queue):
        await stored.until(lambda: proxy.under_way("ReceiveMessage", name), "the poll")
    with stored.reading(sqs, queue):
        await asyncio.to_thread(server.send, queue, "for the second")
        await stored.until_count(1)
        await stored.until(lambda: proxy.under_way("ReceiveMessage", name), "the next poll")
        assert proxy.count("ReceiveMessage", name) == 2
        assert proxy.under_way("ReceiveMessage", name) == 1


async def test_many_queues_do_not_wait_for_each_other(
    server: RealSqs, sqs: SqsPollers, stored: Stored
) -> None:
    urls = [server.create_queue(f"one-of-many-{n}") for n in range(30)]
    with ExitStack() as waits:
        for url in urls:
            waits.enter_context(stored.reading(sqs, url))
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
    with stored.reading(sqs, queue):
        await stored.until(lambda: server.proxy.under_way("ReceiveMessage", name_of(queue)), "the poll")
        with other.reading(sqs, queue.replace("127.0.0.1", "localhost")):
            await other.until(lambda: other.failures, "a refusal")
        assert "are one queue" in other.failures[0]
        assert queue in other.failures[0]
        assert not stored.failures
