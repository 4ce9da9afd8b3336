"""A source is read while a wait needs it."""

from __future__ import annotations

from datetime import datetime

import pytest
from unit.triggers.events.support import (
    LONG_AGO,
    begun,
    post,
    value_of,
    waiting_for,
    waiting_for_events,
)
from unit.triggers.support import Runs, eventually

from deferrable_ops.events import ChannelEvent, KafkaEvent
from deferrable_ops.exceptions import KafkaRefused
from deferrable_ops.outcome import Failure, Outcome
from deferrable_ops.triggers.events import sources
from deferrable_ops.triggers.events.source_request import SourceRequest


async def test_unknown_source_is_named_in_the_failure(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "READERS", {ChannelEvent: None})
    outcome = await runs.start(waiting_for_events({"orders": KafkaEvent("etl")})).outcome()
    assert isinstance(outcome, Failure)
    assert outcome.reason.startswith("kafka:kafka_default/etl: this version")
    assert "use one of ChannelEvent" in outcome.reason


class FakeSource:
    """A source that is read when the test decides."""

    def __init__(self) -> None:
        self.requests: list[SourceRequest] = []
        self.reading = 0

    async def read(self, request: SourceRequest, body: sources.Body) -> Outcome:
        self.requests.append(request)
        self.reading += 1
        try:
            return await body()
        finally:
            self.reading -= 1


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> FakeSource:
    source = FakeSource()
    monkeypatch.setitem(sources.READERS, ChannelEvent, source.read)
    return source


async def test_each_source_is_read_while_the_wait_needs_it(runs: Runs, source: FakeSource) -> None:
    events = {"a": ChannelEvent("x", match={"a": 1}), "b": ChannelEvent("x"), "c": ChannelEvent("y")}
    run = runs.start(waiting_for_events(dict(events), since=LONG_AGO))
    await begun(run)
    a, b, c = events.values()
    assert [request.specifications for request in source.requests] == [(a, b), (c,)]
    assert {request.wait_id for request in source.requests} == {run.attempt.wait_id}
    assert source.requests[0].since == datetime.fromisoformat(LONG_AGO).timestamp()
    assert source.reading == 2
    await post(runs.inbox, "x", {"a": 1})
    await post(runs.inbox, "y")
    await value_of(run)
    assert source.reading == 0


async def test_source_can_warn_in_the_log_and_fail_the_wait(
    runs: Runs, source: FakeSource, caplog: pytest.LogCaptureFixture
) -> None:
    run = runs.start(waiting_for("orders"))
    await begun(run)
    source.requests[0].collector.warn("records before since were deleted")
    await eventually(lambda: "records before since were deleted" in caplog.text, "the warning")
    assert not run.task.done()
    source.requests[0].collector.fail(KafkaRefused("there is no topic orders"), False)
    assert await run.outcome() == Failure("there is no topic orders", retryable=False)
    assert source.reading == 0
