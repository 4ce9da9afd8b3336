"""SQS with errors, refusals and lost responses, and an unavailable inbox."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from deferrable_ops.outages import outages, sqs_source
from deferrable_ops.upstreams.sqs.queues import PollerTimings, SqsPollers
from real_sqs import RealSqs, Stored, name_of


@pytest.fixture
def poller_timings() -> PollerTimings:
    """A refusal is permanent after three attempts, without a minimum time."""
    return PollerTimings(refused_after=0.0)


async def test_no_messages_are_received_while_the_inbox_is_unavailable(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    proxy, name = server.proxy, name_of(queue)
    stored.problem = OSError("the disk is full")
    server.send_all(queue, list(range(5)))
    with stored.subscribed(sqs, queue):
        await stored.until(lambda: stored.tries >= 3, "storing to be tried again")
        assert proxy.count("ReceiveMessage", name) == 1
        assert proxy.count("DeleteMessageBatch", name) == 0
        await asyncio.to_thread(server.send_all, queue, list(range(5, 10)))
        # The first five are hidden for 3 s only, so another receiver may get them meanwhile.
        began = time.monotonic()
        await stored.until(lambda: time.monotonic() - began > 3.5, "the messages to come back")
        assert proxy.count("ReceiveMessage", name) == 1
        stored.problem = None
        await stored.until_count(10)
        await stored.until(lambda: server.count(queue) == 0, "the queue to be empty")
    assert sorted(stored.payloads) == list(range(10))
    assert not stored.failures


async def test_order_is_kept_when_storing_and_deleting_fail(
    server: RealSqs, sqs: SqsPollers, stored: Stored, ordered: str
) -> None:
    def second_half_fails(answer: dict[str, Any]) -> dict[str, Any]:
        # The server has deleted them, but reports a failure.
        done = answer["Successful"]
        failed = [{"Id": one["Id"], "Code": "InternalError", "SenderFault": False} for one in done[5:]]
        return {"Successful": done[:5], "Failed": failed}

    server.proxy.change("DeleteMessageBatch", second_half_fails, times=2)
    lost = server.proxy.fail("DeleteMessageBatch", 500, "InternalFailure", times=2)
    server.send_all(ordered, list(range(35)), group="a")
    stored.problem = OSError("away")
    with stored.subscribed(sqs, ordered):
        await stored.until(lambda: stored.tries >= 2, "storing to fail")
        stored.problem = None
        await stored.until_count(35, seconds=60)
        await stored.until(lambda: server.count(ordered) == 0, "the queue to be empty")
    assert lost.times == 0, "no delete failed"
    assert stored.payloads == list(range(35))


async def test_message_with_an_expired_receipt_is_deduplicated(
    server: RealSqs, sqs: SqsPollers, stored: Stored, ordered: str
) -> None:
    server.proxy.fail("DeleteMessageBatch", 503, "ServiceUnavailable")
    server.send_all(ordered, [1, 2, 3], group="a")
    with stored.subscribed(sqs, ordered):
        await stored.until(lambda: stored.again >= 3, "them to come again")
        server.proxy.heal()
        await stored.until(lambda: server.count(ordered) == 0, "the queue to be empty")
    assert stored.payloads == [1, 2, 3]


async def test_batch_of_a_lost_response_is_received_again(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    server.send_all(queue, list(range(5)))
    server.proxy.fail("ReceiveMessage", times=1, reaches_server=True)
    with stored.subscribed(sqs, queue):
        await stored.until_count(5)
    assert sorted(stored.payloads) == list(range(5))


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "ThrottlingException"),
        (400, "OverLimit"),
        (403, "RequestThrottled"),
        (429, "TooManyRequestsException"),
        (500, "InternalFailure"),
        (503, "AccessDenied"),
        (0, ""),
    ],
)
async def test_transient_errors_are_retried_with_backoff(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str, status: int, code: str
) -> None:
    name, proxy = name_of(queue), server.proxy
    proxy.fail("*", status, code)
    with stored.subscribed(sqs, queue):
        began = time.monotonic()
        await stored.until(lambda: len([c for c in proxy.calls if name in str(c.request)]) >= 4, "four tries")
        # Two calls run at the same time; each is retried after at least 0.1 s.
        assert time.monotonic() - began > 0.1, "retried without a pause"
        proxy.heal()
        await asyncio.to_thread(server.send, queue, "hello")
        await stored.until_count(1)
    assert not stored.failures


async def test_outage_is_reported_until_sqs_answers(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    server.proxy.fail("*", 503, "ServiceUnavailable")
    with stored.subscribed(sqs, queue) as event:
        source = sqs_source(event.source)

        def seen() -> list[str]:
            return [one.error for one in outages.active() if one.source == source]

        await stored.until(seen, "an outage")
        assert "ServiceUnavailable" in seen()[0]
        server.proxy.heal()
        await stored.until(lambda: not seen(), "the end of the outage")


async def test_missing_queue_fails_the_wait(server: RealSqs, sqs: SqsPollers, stored: Stored) -> None:
    url = server.create_queue("deleted-soon")
    server.delete_queue(url)
    with stored.subscribed(sqs, url):
        await stored.until(lambda: stored.failures, "a failure")
    assert f"there is no queue {url}" in stored.failures[0]
    assert "queue_url=" in stored.failures[0]


async def test_deleted_queue_fails_the_wait(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    with stored.subscribed(sqs, queue):
        server.send(queue, "hello")
        await stored.until_count(1)
        server.delete_queue(queue)
        server.proxy.fail("ReceiveMessage", times=1, reaches_server=True)
        await stored.until(lambda: stored.failures, "a failure", seconds=60)
    assert f"there is no queue {queue}" in stored.failures[0]


@pytest.mark.parametrize("poller_timings", [PollerTimings(refused_after=30.0)])
async def test_queue_that_is_created_soon_is_waited_for(
    server: RealSqs, sqs: SqsPollers, stored: Stored
) -> None:
    url = f"{server.url}/123456789012/made-soon"
    with stored.subscribed(sqs, url):
        await stored.until(lambda: server.proxy.count("GetQueueAttributes", "made-soon") >= 4, "refusals")
        server.create_queue("made-soon")
        server.send(url, "hello")
        await stored.until_count(1)
    assert not stored.failures


@pytest.mark.parametrize(
    ("action", "permission"),
    [("ReceiveMessage", "sqs:ReceiveMessage"), ("DeleteMessageBatch", "sqs:DeleteMessage")],
)
async def test_missing_permission_is_reported(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str, action: str, permission: str
) -> None:
    message = f"User: arn:aws:iam::123456789012:user/u is not authorized to perform: {permission}"
    server.proxy.fail(action, 403, "AccessDenied", message=message)
    server.send(queue, "hello")
    with stored.subscribed(sqs, queue), stored.subscribed(sqs, queue):
        await stored.until(lambda: len(stored.failures) == 2, "both waits to fail")
    assert stored.failures[0].startswith(f"the connection 'aws_tests' may not call {permission} on ")
    assert message in stored.failures[0]
    assert server.proxy.count(action, name_of(queue)) >= 3


async def test_single_refusal_is_retried(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    server.proxy.fail("ReceiveMessage", 403, "AccessDenied", times=2)
    server.send(queue, "hello")
    with stored.subscribed(sqs, queue):
        await stored.until_count(1)
    assert not stored.failures


async def test_queue_is_polled_without_permission_to_read_its_attributes(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    server.proxy.fail("GetQueueAttributes", 403, "AccessDeniedException")
    server.send(queue, "hello")
    with stored.subscribed(sqs, queue):
        await stored.until_count(1)
    assert server.proxy.count("GetQueueAttributes", name_of(queue)) == 1
    assert not stored.failures


async def test_missing_decrypt_permission_is_reported(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    server.proxy.fail("ReceiveMessage", 400, "KMS.AccessDeniedException", message="no kms:Decrypt")
    with stored.subscribed(sqs, queue):
        await stored.until(lambda: stored.failures, "a failure")
    assert "grant kms:Decrypt" in stored.failures[0]


async def test_wait_can_start_again_after_a_refusal(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    refused = server.proxy.fail("ReceiveMessage", 403, "AccessDenied")
    with stored.subscribed(sqs, queue):
        await stored.until(lambda: stored.failures, "a failure")
    server.proxy.heal(refused)
    server.send(queue, "hello")
    with stored.subscribed(sqs, queue):
        await stored.until_count(1)


async def test_closing_cancels_a_poll_in_progress(
    server: RealSqs, sqs: SqsPollers, stored: Stored, queue: str
) -> None:
    with stored.subscribed(sqs, queue):
        name = name_of(queue)
        await stored.until(lambda: server.proxy.under_way("ReceiveMessage", name), "the poll")
        began = time.monotonic()
        await sqs.close()
        assert time.monotonic() - began < 5
