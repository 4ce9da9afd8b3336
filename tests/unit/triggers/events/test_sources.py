"""What a source needs runs while a wait needs it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
from deferrable_ops.outcome import Failure
from deferrable_ops.triggers.events import sources
from deferrable_ops.triggers.events.source_request import Need


async def test_source_that_cannot_be_read_yet_is_named(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "UPSTREAMS", {ChannelEvent: None})
    outcome = await runs.start(waiting_for_events({"orders": KafkaEvent("etl")})).outcome()
    assert isinstance(outcome, Failure)
    assert outcome.reason.startswith("kafka:kafka_default/etl: this version")


class FakeUpstream:
    """An upstream that does as it is told."""

    def __init__(self) -> None:
        self.needs: list[Need] = []
        self.running = 0

    @asynccontextmanager
    async def run(self, need: Need) -> AsyncIterator[None]:
        self.needs.append(need)
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> FakeUpstream:
    upstream = FakeUpstream()
    monkeypatch.setitem(sources.UPSTREAMS, ChannelEvent, upstream.run)
    return upstream


async def test_upstream_runs_for_each_source_while_the_wait_needs_it(
    runs: Runs, upstream: FakeUpstream
) -> None:
    events = {"a": ChannelEvent("x", match={"a": 1}), "b": ChannelEvent("x"), "c": ChannelEvent("y")}
    run = runs.start(waiting_for_events(dict(events), since=LONG_AGO))
    await begun(run)
    a, b, c = events.values()
    assert [need.specifications for need in upstream.needs] == [(a, b), (c,)]
    assert {need.wait_id for need in upstream.needs} == {run.attempt.wait_id}
    assert upstream.needs[0].since == datetime.fromisoformat(LONG_AGO).timestamp()
    assert upstream.running == 2
    await post(runs.inbox, "x", {"a": 1})
    await post(runs.inbox, "y")
    await value_of(run)
    assert upstream.running == 0


async def test_upstream_can_warn_in_the_log_and_end_the_wait(
    runs: Runs, upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    run = runs.start(waiting_for("orders"))
    await begun(run)
    upstream.needs[0].intake.warn("records before since were deleted")
    await eventually(lambda: "records before since were deleted" in caplog.text, "the warning")
    assert not run.task.done()
    upstream.needs[0].intake.fail("there is no topic orders")
    assert await run.outcome() == Failure("there is no topic orders")
    assert upstream.running == 0
