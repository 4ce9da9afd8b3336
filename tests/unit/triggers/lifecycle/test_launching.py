"""An inbox is lost, or restored from an older backup: no task launches its work a second time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import SetXCom
from sqlalchemy import update
from unit.triggers.events.support import LONG_AGO, begun, post, waiting_for
from unit.triggers.support import Run, Runs, XComs, change, eventually, lose, new_attempt

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.database.schema import waits
from deferrable_ops.inbox.waits.callbacks import Callback, Verb
from deferrable_ops.outcome import Failure, Success
from deferrable_ops.testing import OutsideService, memory_inbox, outside_service
from deferrable_ops.testing.dataflow import Step, fake_dataflow
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.dataflow.triggers import DataflowLaunchTrigger
from deferrable_ops.triggers.events.publish import trigger as publish
from deferrable_ops.triggers.events.publish.trigger import PublishEventTrigger
from deferrable_ops.triggers.lifecycle import launching
from deferrable_ops.triggers.webhook import WebhookTrigger

QUEUE = "https://sqs.eu-central-1.amazonaws.com/123456789012/loads"


@pytest.fixture(autouse=True)
def xcoms(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> XComs:
    """Let triggers record their launches as in a triggerer."""
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__ENDPOINT_URL", "https://airflow.example.com/deferrable-ops")
    monkeypatch.setattr(TaskTrigger, "records_launches", True)
    monkeypatch.setattr(TaskTrigger, "first_retry_pause", 0.05)
    xcoms = XComs()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", xcoms, raising=False)
    return xcoms


async def launched(run: Run) -> None:
    async with asyncio.timeout(20):
        while (
            not (found := await run.inbox.waits.get_many([run.attempt.wait_id]))
            or found[0].launched_at is None
        ):
            await asyncio.sleep(0.01)


async def call_back(inbox: Inbox, run: Run) -> None:
    await inbox.callbacks.record(Callback(run.attempt.wait_id, Verb.SUCCESS, b"7", 7, source="test"))


@pytest.fixture
async def service() -> Any:
    async with outside_service() as service:
        yield service


async def test_webhook_does_not_launch_again_after_a_restart_with_an_older_backup(
    runs: Runs, service: OutsideService, caplog: pytest.LogCaptureFixture
) -> None:
    trigger = WebhookTrigger(url=service.url)
    first = runs.start(trigger)
    await launched(first)
    await first.kill_process()
    await lose(first)
    second = runs.start(trigger, first.attempt)
    await launched(second)
    assert "An earlier run has launched the work, so the work is not launched again" in caplog.text
    # A further restart finds the row, and launches nothing either.
    await second.kill_process()
    third = runs.start(trigger, first.attempt)
    await call_back(runs.inbox, third)
    assert await third.outcome() == Success(7)
    assert len(service.requests) == 1


async def test_webhook_does_not_launch_again_with_an_empty_inbox(runs: Runs, service: OutsideService) -> None:
    trigger = WebhookTrigger(url=service.url)
    first = runs.start(trigger)
    await launched(first)
    await first.kill_process()
    async with memory_inbox() as empty:
        others = Runs(empty)
        second = others.start(trigger, first.attempt)
        await launched(second)
        await change(second, update(waits).values(deadline=0.0))
        outcome = await second.outcome()
        await others.stop()
    assert isinstance(outcome, Failure)
    assert "the inbox had lost this wait after the launch" in outcome.reason
    assert len(service.requests) == 1


async def test_webhook_launches_again_if_its_operator_allows_it(
    runs: Runs, service: OutsideService, caplog: pytest.LogCaptureFixture
) -> None:
    trigger = WebhookTrigger(url=service.url, relaunch_when_lost=True)
    first = runs.start(trigger)
    await launched(first)
    await first.kill_process()
    await lose(first)
    await launched(runs.start(trigger, first.attempt))
    assert "launched again, because relaunch_when_lost=True" in caplog.text
    keys = [request.headers["idempotency-key"] for request in service.requests]
    assert keys == [first.attempt.wait_id] * 2


async def test_row_that_is_lost_under_a_running_trigger_is_registered_again(
    runs: Runs, service: OutsideService, caplog: pytest.LogCaptureFixture
) -> None:
    run = runs.start(WebhookTrigger(url=service.url))
    await launched(run)
    await lose(run)
    # The database did not answer while it was restored.
    runs.inbox.database.interrupted_at = time.time()
    await launched(run)
    assert "The inbox no longer has this wait" in caplog.text
    await call_back(runs.inbox, run)
    assert await run.outcome() == Success(7)
    assert len(service.requests) == 1


async def test_event_sensor_whose_row_is_lost_collects_its_events_again(
    runs: Runs,
) -> None:
    run = runs.start(waiting_for("orders", "stock", since=LONG_AGO))
    await begun(run)
    await post(runs.inbox, "orders", 1)
    await lose(run)
    runs.inbox.database.interrupted_at = time.time()
    async with asyncio.timeout(20):
        while not await runs.inbox.waits.get_many([run.attempt.wait_id]):
            await asyncio.sleep(0.01)
    await post(runs.inbox, "stock", 2)
    assert isinstance(await run.outcome(), Success)


async def test_launch_waits_while_airflow_cannot_show_whether_the_work_was_launched(
    runs: Runs, service: OutsideService, xcoms: XComs
) -> None:
    trigger = WebhookTrigger(url=service.url)
    first = runs.start(trigger)
    await launched(first)
    await first.kill_process()
    await lose(first)
    xcoms.error = ConnectionError()
    second = runs.start(trigger, first.attempt)
    await eventually(lambda: second.attempt.wait_id in runs.inbox.watcher.watched, "the second run")
    await asyncio.sleep(0.3)
    xcoms.error = None
    await launched(second)
    assert len(service.requests) == 1


async def test_record_of_an_earlier_attempt_does_not_prevent_a_launch(
    runs: Runs, service: OutsideService
) -> None:
    trigger = WebhookTrigger(url=service.url)
    first = runs.start(trigger)
    await launched(first)
    await launched(runs.start(trigger, new_attempt(2, first.attempt)))
    assert len(service.requests) == 2


async def test_run_that_was_killed_before_the_request_launches_as_long_as_the_inbox_keeps_its_claim(
    runs: Runs, service: OutsideService, xcoms: XComs, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = asyncio.Event()
    write = launching.write

    async def write_and_hang(*arguments: Any) -> None:
        await write(*arguments)
        recorded.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(launching, "write", write_and_hang)
    trigger = WebhookTrigger(url=service.url)
    first = runs.start(trigger)
    await asyncio.wait_for(recorded.wait(), 20)
    await first.kill_process()
    monkeypatch.setattr(launching, "write", write)
    await launched(runs.start(trigger, first.attempt))
    assert len(service.requests) == 1
    assert xcoms.reads == 1, (
        "only the first run reads the record, because the inbox shows the claim of the second"
    )


async def test_launch_is_sent_if_it_cannot_be_recorded(
    runs: Runs, service: OutsideService, xcoms: XComs, caplog: pytest.LogCaptureFixture
) -> None:
    monkey = xcoms.asend

    async def refuse_writes(message: Any) -> Any:
        if isinstance(message, SetXCom):
            raise TimeoutError
        return await monkey(message)

    xcoms.asend = refuse_writes  # type: ignore[method-assign]
    await launched(runs.start(WebhookTrigger(url=service.url)))
    assert len(service.requests) == 1
    assert "Could not record the launch as the XCom launch_record (TimeoutError)" in caplog.text


async def test_wait_that_a_worker_registered_logs_that_its_row_is_gone(
    runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    run = runs.start(WebhookTrigger(registered=True))
    await eventually(lambda: "The worker has launched the work" in caplog.text, "the log")
    await call_back(runs.inbox, run)
    assert await run.outcome() == Success(7)


class Sender:
    """Counts the batches that are sent to SQS."""

    def __init__(self) -> None:
        self.sent = 0

    async def publish(self, _sender: Any, check: Any) -> dict[str, Any]:
        await check()
        self.sent += 1
        await asyncio.Event().wait()
        return {}


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> Sender:
    sender = Sender()

    class Opened:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *_: object) -> None: ...

    monkeypatch.setattr(publish, "use_sender", lambda _conn_id: Opened())
    monkeypatch.setattr(publish, "SqsPublisher", lambda *_: sender)
    return sender


async def lose_published(runs: Runs, sender: Sender, **arguments: Any) -> Run:
    """Let a run publish a batch, lose its wait, and return a second run of the same attempt."""
    trigger = PublishEventTrigger(sqs=QUEUE, payload=1, **arguments)
    first = runs.start(trigger)
    await eventually(lambda: sender.sent == 1, "the first batch")
    await first.kill_process()
    await lose(first)
    return runs.start(trigger, first.attempt)


async def test_messages_are_not_published_again(runs: Runs, sender: Sender) -> None:
    outcome = await (await lose_published(runs, sender)).outcome()
    assert isinstance(outcome, Failure)
    assert not outcome.retryable
    assert "an earlier run of this attempt may have published the messages" in outcome.reason
    assert sender.sent == 1


async def test_messages_are_published_again_if_the_operator_allows_it(runs: Runs, sender: Sender) -> None:
    await lose_published(runs, sender, relaunch_when_lost=True)
    await eventually(lambda: sender.sent == 2, "the second batch")


async def test_dataflow_job_is_found_by_its_label(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake_dataflow() as fake:
        fake.script("load", Step("RUNNING"), streaming=True)
        trigger = DataflowLaunchTrigger(
            project_id="my-project",
            region="europe-west1",
            poll_interval=0.05,
            body={"containerSpecGcsPath": "gs://bucket/template.json"},
        )
        first = runs.start(trigger)
        await launched(first)
        await first.kill_process()
        await lose(first)
        await launched(runs.start(trigger, first.attempt))
        assert len(fake.jobs()) == 1
        await runs.stop()


async def test_record_is_read_only_if_the_inbox_can_have_lost_the_launch(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "_process_started_at", lambda: 1_000.0)
    inbox = runs.inbox
    assert launching.may_be_lost(inbox, None)
    assert launching.may_be_lost(inbox, 1_005.0), "the clocks may differ"
    assert not launching.may_be_lost(inbox, 1_020.0)
    inbox.database.interrupted_at = 2_000.0
    assert launching.may_be_lost(inbox, 1_020.0)
    assert not launching.may_be_lost(inbox, 2_020.0)
