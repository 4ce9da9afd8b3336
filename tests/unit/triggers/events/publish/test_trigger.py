"""An event is published once per attempt, however often and wherever the trigger runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
from unit.triggers.events.support import begun, payloads, waiting_for_events
from unit.triggers.support import Runs, new_attempt

from deferrable_ops.events import ChannelEvent
from deferrable_ops.exceptions import ConfigurationError, LaunchRefused, SqsRefused
from deferrable_ops.outcome import Failure, Success
from deferrable_ops.triggers.events.publish import trigger as publish_trigger
from deferrable_ops.triggers.events.publish.trigger import PublishEventTrigger

QUEUE = "https://sqs.eu-west-1.amazonaws.com/123456789012/loads"


async def test_published_event_releases_a_wait_that_can_match_its_publisher(runs: Runs) -> None:
    match = {"table": "orders", "metadata": {"dag_id": "dag", "task_id": "announce"}}
    wait = runs.start(waiting_for_events({"loaded": ChannelEvent("loads", match=match)}))
    await begun(wait)
    publish = PublishEventTrigger(channel="loads", payload={"table": "orders", "rows": 7})
    await runs.start(publish, new_attempt(task_id="other")).outcome()
    outcome = await runs.start(publish, new_attempt(task_id="announce")).outcome()
    assert isinstance(outcome, Success)
    assert outcome.value["channel"] == "loads"
    assert outcome.value["event"] == 2
    released = await wait.outcome()
    assert isinstance(released, Success)
    assert payloads(released.value) == {"loaded": {"table": "orders", "rows": 7}}


async def test_event_is_published_once_when_the_trigger_runs_again(runs: Runs) -> None:
    attempt = new_attempt()
    publish = PublishEventTrigger(channel="loads", payload=[1, None])
    outcomes = await asyncio.gather(*(runs.start(publish, attempt).outcome() for _ in range(3)))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert len(await posted(runs)) == 1
    await runs.start(publish, new_attempt(2, attempt)).outcome()
    assert len(await posted(runs)) == 2


async def test_event_is_published_once_when_its_append_was_interrupted(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = new_attempt()
    publish = PublishEventTrigger(channel="loads", payload="x")
    append = runs.inbox.events.append
    appended = asyncio.Event()

    async def append_and_hang(event: Any) -> Any:
        await append(event)
        appended.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(runs.inbox.events, "append", append_and_hang)
    run = runs.start(publish, attempt)
    await asyncio.wait_for(appended.wait(), 20)
    await run.kill_process()
    monkeypatch.setattr(runs.inbox.events, "append", append)
    assert isinstance(await runs.start(publish, attempt).outcome(), Success)
    assert [event.payload for event in await posted(runs)] == ["x"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"channel": ""}, "name='' is not allowed"),
        ({"channel": "a b"}, "name='a b' is not allowed"),
        ({"payload": "x" * 300_000}, "300002 bytes of JSON"),
        ({"payload": {"a": "\x00"}}, "cannot be stored"),
        ({"payload": 2**70}, "cannot be stored"),
    ],
)
async def test_rendered_argument_that_is_wrong_fails_the_task_with_the_reason(
    runs: Runs, arguments: dict[str, Any], message: str
) -> None:
    outcome = await runs.start(PublishEventTrigger(**{"channel": "loads", **arguments})).outcome()
    assert isinstance(outcome, Failure)
    assert message in outcome.reason
    assert await posted(runs) == []


class Sender:
    """Replaces the sender of SQS messages. `errors` are raised instead of the calls with these numbers."""

    def __init__(self, errors: dict[int, Exception]) -> None:
        self.errors = errors
        self.calls = 0
        self.sent: list[str] = []

    async def send(self, _queue_url: str, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        self.calls += 1
        if self.calls in self.errors:
            raise self.errors[self.calls]
        self.sent += [entry["MessageBody"] for entry in entries]
        return {entry["Id"]: f"id-{entry['Id']}" for entry in entries}


EXPIRED = SqsRefused("the session token has expired")


MISSING = ConfigurationError("the connection aws is missing")


@pytest.fixture
def publish_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sender], PublishEventTrigger]:
    """Return a function that creates a trigger, which sends 25 messages in batches of 10 with a sender."""

    def make(sender: Sender) -> PublishEventTrigger:
        monkeypatch.setattr(publish_trigger, "use_sender", lambda _conn_id: nullcontext(sender))
        monkeypatch.setattr(PublishEventTrigger, "first_retry_pause", 0.01)
        return PublishEventTrigger(sqs=QUEUE, messages=[str(number) for number in range(25)])

    return make


@pytest.mark.parametrize(("error", "call"), [(EXPIRED, 2), (MISSING, 3)])
async def test_refused_login_is_temporary_once_messages_are_published(
    runs: Runs, publish_with: Callable[[Sender], PublishEventTrigger], error: Exception, call: int
) -> None:
    sender = Sender({call: error})
    assert isinstance(await runs.start(publish_with(sender)).outcome(), Success)
    assert sender.sent == [str(number) for number in range(25)], "each message is sent once"


@pytest.mark.parametrize(
    ("error", "call"), [(EXPIRED, 1), (MISSING, 1), (LaunchRefused("SQS rejects messages[10]"), 2)]
)
async def test_refused_login_before_the_first_message_and_a_rejected_message_fail_the_task(
    runs: Runs, publish_with: Callable[[Sender], PublishEventTrigger], error: Exception, call: int
) -> None:
    outcome = await runs.start(publish_with(Sender({call: error}))).outcome()
    assert outcome == Failure(str(error), retryable=False)


async def posted(runs: Runs) -> list[Any]:
    return await runs.inbox.events.read(["channel:loads"], after=0, upto=10**9, limit=100)
