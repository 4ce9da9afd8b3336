"""Publishing to SQS queues: in order, with ids for repetitions, also after kills."""

from __future__ import annotations

import asyncio
import itertools
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from integration.inboxes import open_inbox
from unit.triggers.events.support import payloads, value_of, waiting_for_events
from unit.triggers.support import Run, Runs, new_attempt

from deferrable_ops.events import SqsEvent, SqsMessage
from deferrable_ops.operators.events import PublishEventOperator
from deferrable_ops.outcome import Failure
from deferrable_ops.testing import running
from deferrable_ops.triggers.events.publish.trigger import PublishEventTrigger
from real_sqs import RealSqs
from real_sqs.server import client

_numbers = itertools.count(1)
ID = "deferrable-ops-id"


@pytest.fixture
def queue(sqs_server: RealSqs, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a queue of the connection aws_default."""
    for name, value in sqs_server.connection().items():
        monkeypatch.setenv(name, value)
    return sqs_server.create_queue(f"published-{next(_numbers)}")


@pytest.fixture
def fifo(sqs_server: RealSqs, queue: str) -> str:
    """The URL of a FIFO queue."""
    return sqs_server.create_queue(f"published-{next(_numbers)}.fifo")


def received(server: RealSqs, url: str) -> list[dict[str, Any]]:
    """Receive all messages of a queue."""
    sqs, found = client("sqs", server.url), []
    told = {"MessageAttributeNames": ["All"], "MessageSystemAttributeNames": ["All"]}
    while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, **told).get("Messages"):
        found += messages
        for message in messages:
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return found


def bodies(messages: list[dict[str, Any]]) -> list[Any]:
    return [json.loads(message["Body"]) for message in messages]


def ids(messages: list[dict[str, Any]]) -> list[int]:
    """Return the message numbers from the attribute deferrable-ops-id."""
    return [int(one["MessageAttributes"][ID]["StringValue"].rpartition("/")[2]) for one in messages]


def publishing(url: str, **arguments: Any) -> PublishEventTrigger:
    return PublishEventTrigger(sqs=url, aws_conn_id="aws_default", **arguments)


async def test_message_releases_a_wait_of_another_task(queue: str, runs: Runs) -> None:
    event = SqsEvent(queue, dedicated=True, match="amount > `5` && attributes.shop == 'web'")
    wait = runs.start(waiting_for_events({"paid": event}))
    messages = [SqsMessage({"amount": 7, "day": "ä"}, attributes={"shop": "web", "weight": 1.5})]
    publish = PublishEventOperator(task_id="pay", sqs=queue, messages=messages)
    async with running(publish) as task, asyncio.timeout(30):
        value = (await task.outcome()).value
    assert (value["count"], value["queue_url"], len(value["message_ids"])) == (1, queue, 1)
    # The operator ran on another inbox; both use the same queue.
    assert payloads(await value_of(wait))["paid"] == {"amount": 7, "day": "ä"}


async def test_many_messages_are_sent_ten_at_a_time(sqs_server: RealSqs, queue: str, runs: Runs) -> None:
    before = len(sqs_server.proxy.calls)
    run = runs.start(publishing(queue, messages=[{"n": n} for n in range(205)]))
    value = await value_of(run)
    sent = [call for call in sqs_server.proxy.calls[before:] if call.action == "SendMessageBatch"]
    assert len(sent) == 21
    assert value["count"] == 205
    assert len(value["message_ids"]) == 100
    messages = received(sqs_server, queue)
    assert sorted(one["n"] for one in bodies(messages)) == sorted(ids(messages)) == list(range(205))


async def test_large_messages_do_not_share_a_batch(sqs_server: RealSqs, queue: str, runs: Runs) -> None:
    texts = [letter * 150_000 for letter in "abc"]
    await value_of(runs.start(publishing(queue, messages=texts)))
    assert sorted(one["Body"] for one in received(sqs_server, queue)) == texts


async def test_fifo_queue_keeps_the_order_of_each_group(sqs_server: RealSqs, fifo: str, runs: Runs) -> None:
    messages: list[Any] = [{"n": n} for n in range(15)]
    grouped = [SqsMessage({"n": 100 + n}, group_id=f"group-{n % 3}") for n in range(30)]
    before = len(sqs_server.proxy.calls)
    publish = PublishEventOperator(task_id="load", sqs=fifo, messages=[*messages, *grouped])
    run = runs.start(PublishEventTrigger(**publish.trigger_kwargs()))
    await value_of(run)
    sent = [call for call in sqs_server.proxy.calls[before:] if call.action == "SendMessageBatch"]
    assert len(sent) < 15 + 30, "messages of several groups go together"
    found: dict[str, list[int]] = {}
    for message in received(sqs_server, fifo):
        group = message["Attributes"]["MessageGroupId"]
        found.setdefault(group, []).append(json.loads(message["Body"])["n"])
    assert found.pop("dag.load_orders") == list(range(15))
    assert found == {f"group-{g}": [100 + n for n in range(30) if n % 3 == g] for g in range(3)}


@pytest.mark.parametrize("kind", ["standard", "fifo"])
async def test_lost_response_causes_a_retry(
    sqs_server: RealSqs, queue: str, fifo: str, runs: Runs, kind: str
) -> None:
    url = queue if kind == "standard" else fifo
    fault = sqs_server.proxy.fail("SendMessageBatch", times=1, reaches_server=True)
    try:
        value = await value_of(runs.start(publishing(url, messages=[1, 2, 3])))
    finally:
        sqs_server.proxy.heal(fault)
    assert value["count"] == 3
    found = ids(received(sqs_server, url))
    assert sorted(found) == ([0, 0, 1, 1, 2, 2] if kind == "standard" else [0, 1, 2])


async def test_messages_of_a_batch_that_sqs_refused_are_sent_again(
    sqs_server: RealSqs, queue: str, runs: Runs
) -> None:
    def two_fail(answer: dict[str, Any]) -> dict[str, Any]:
        entries = answer["Successful"]
        failed = [{"Id": one["Id"], "Code": "InternalError", "SenderFault": False} for one in entries[:2]]
        return {"Successful": entries[2:], "Failed": failed}

    fault = sqs_server.proxy.fail("SendMessageBatch", times=1, after=two_fail)
    try:
        value = await value_of(runs.start(publishing(queue, messages=[1, 2, 3])))
    finally:
        sqs_server.proxy.heal(fault)
    assert len(value["message_ids"]) == 3
    assert sorted(ids(received(sqs_server, queue))) == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("kind, most_repeated", [("standard", 10), ("fifo", 0)])
async def test_killed_triggerer_repeats_at_most_one_batch(
    sqs_server: RealSqs,
    queue: str,
    fifo: str,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    most_repeated: int,
) -> None:
    url = queue if kind == "standard" else fifo
    note, noted, reached = runs.inbox.waits.save_progress, itertools.count(1), asyncio.Event()

    async def note_and_hang(wait_id: str, progress: Any) -> None:
        if next(noted) == 2:
            reached.set()
            await asyncio.Event().wait()
        await note(wait_id, progress)

    monkeypatch.setattr(runs.inbox.waits, "save_progress", note_and_hang)
    publish = publishing(url, messages=list(range(35)))
    run = runs.start(publish)
    await asyncio.wait_for(reached.wait(), 30)
    monkeypatch.setattr(runs.inbox.waits, "save_progress", note)
    await run.kill_process()
    value = await value_of(runs.start(publish, run.attempt))
    assert value["count"] == 35
    found = ids(received(sqs_server, url))
    assert set(found) == set(range(35))
    assert len(found) == 35 + most_repeated


async def test_two_triggerers_at_once_publish_once(
    sqs_server: RealSqs, queue: str, runs: Runs, tmp_path: Path
) -> None:
    publish, attempt = publishing(queue, messages=list(range(100))), new_attempt()

    async def other_triggerer() -> Any:
        inbox = await open_inbox(tmp_path)
        others = Runs(inbox)
        try:
            return await value_of(others.start(publish, attempt))
        finally:
            await others.stop()
            await inbox.close()

    one = runs.start(publish, attempt)
    other = asyncio.create_task(asyncio.to_thread(asyncio.run, other_triggerer()))
    assert await value_of(one) == await other
    assert sorted(ids(received(sqs_server, queue))) == list(range(100))


async def test_file_that_changed_during_publishing_fails_the_task(
    queue: str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "messages.jsonl"
    file.write_text("\n".join(map(str, range(25))))
    publish = publishing(queue, file=str(file))
    run = runs.start(publish)
    async with asyncio.timeout(20):
        while not (await run_progress(run)):
            await asyncio.sleep(0.005)
    await run.kill_process()
    file.write_text("\n".join(map(str, range(100, 125))))
    if (await run.wait()).launched_at is not None:
        pytest.fail("all was published before it could be interrupted")
    outcome = await runs.start(publish, run.attempt).outcome()
    assert isinstance(outcome, Failure)
    assert "the messages have changed since the first" in outcome.reason


async def run_progress(run: Run) -> Any:
    found = await run.inbox.waits.get_many([run.attempt.wait_id])
    return found[0].progress if found else None


async def test_temporary_errors_are_retried(sqs_server: RealSqs, queue: str, runs: Runs) -> None:
    fault = sqs_server.proxy.fail("SendMessageBatch", times=3, status=503, code="ServiceUnavailable")
    try:
        value = await value_of(runs.start(publishing(queue, payload=1)))
    finally:
        sqs_server.proxy.heal(fault)
    assert value["count"] == 1
    assert ids(received(sqs_server, queue)) == [0]


async def test_error_that_lasts_until_the_timeout_is_named(
    sqs_server: RealSqs, queue: str, runs: Runs
) -> None:
    fault = sqs_server.proxy.fail("SendMessageBatch", times=1_000, status=503, code="ServiceUnavailable")
    try:
        outcome = await runs.start(publishing(queue, payload=1, timeout=2.0)).outcome()
    finally:
        sqs_server.proxy.heal(fault)
    assert isinstance(outcome, Failure)
    assert "not published within the timeout of 2 s" in outcome.reason
    assert "ServiceUnavailable" in outcome.reason


async def test_missing_queue_fails_the_task(queue: str, runs: Runs) -> None:
    outcome = await runs.start(publishing(f"{queue}-not", payload=1)).outcome()
    assert isinstance(outcome, Failure)
    assert "there is no queue" in outcome.reason
    assert f"{queue}-not" in outcome.reason


async def test_missing_permission_is_named(sqs_server: RealSqs, queue: str, runs: Runs) -> None:
    fault = sqs_server.proxy.fail("SendMessageBatch", times=1, status=403, code="AccessDenied")
    try:
        outcome = await runs.start(publishing(queue, payload=1)).outcome()
    finally:
        sqs_server.proxy.heal(fault)
    assert isinstance(outcome, Failure)
    assert "may not call sqs:SendMessage" in outcome.reason
    assert sqs_server.secret_key not in outcome.reason


@pytest.mark.parametrize(
    "message, said",
    [
        ("x" * 1_100_000, "SQS refuses SendMessageBatch"),
        ("bell \x07", "messages[0] has the character '\\x07'"),
        ("", "messages[0] is an empty string"),
        (SqsMessage(1, deduplication_id="a"), "deduplication_id= needs a FIFO queue"),
    ],
)
async def test_message_that_sqs_refuses_is_named(queue: str, runs: Runs, message: Any, said: str) -> None:
    publish = PublishEventOperator(task_id="t", sqs=queue, messages=[message])
    outcome = await runs.start(PublishEventTrigger(**publish.trigger_kwargs())).outcome()
    assert isinstance(outcome, Failure)
    assert said in outcome.reason


async def test_delay_hides_a_message(sqs_server: RealSqs, queue: str, runs: Runs) -> None:
    messages = [SqsMessage("later", delay=timedelta(minutes=5)), "now"]
    publish = PublishEventOperator(task_id="t", sqs=queue, messages=messages)
    await value_of(runs.start(PublishEventTrigger(**publish.trigger_kwargs())))
    assert [one["Body"] for one in received(sqs_server, queue)] == ["now"]
