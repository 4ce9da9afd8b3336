"""After a restart, a wait first replays the records read for it, however many arrived for other waits."""

from __future__ import annotations

from typing import Any

import pytest
from unit.triggers.events.kafka_support import ORDERS, PAID, FakeKafka, order_event
from unit.triggers.events.support import (
    LONG_AGO,
    NOTHING,
    begun,
    payloads,
    value_of,
    waiting_for,
    waiting_for_events,
)
from unit.triggers.support import Runs, eventually

from deferrable_ops.inbox.events.events import NewEvent, SourcePosition

OTHERS = 300


def record(offset: int, payload: str) -> NewEvent:
    event = order_event(offset, payload.encode())
    return NewEvent(event.source, event.dedupe_key, event.payload, event.attributes, event.time)


async def test_records_read_before_a_restart_count_while_the_feed_is_busy(
    runs: Runs, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    trigger = waiting_for_events({"orders": ORDERS, "paid": PAID}, since=LONG_AGO)
    run = runs.start(trigger)
    await eventually(lambda: kafka.read_for, "it to be read for")
    (key,) = kafka.read_for
    await run.kill_process()
    another = runs.start(waiting_for("signed", match={"by": "nobody"}))
    await begun(another)
    await eventually(
        lambda: all(one.is_live for one in runs.inbox.feed._followers["channel:signed"]), "it to be live"
    )
    reached = runs.inbox.events.position_of

    async def bring_and_tell(source: str, consumer: str) -> Any:
        new = []
        for number in range(OTHERS):
            new.append(NewEvent("channel:signed", str(number), {}, NOTHING))
            new.append(record(number, "{}"))
        new += [record(OTHERS, '{"db": "a"}'), record(OTHERS + 1, '{"db": "b"}')]
        await runs.inbox.events.append_all(
            new, positions=[SourcePosition(source, consumer, {"0": OTHERS + 2})]
        )
        return await reached(source, consumer)

    monkeypatch.setattr(runs.inbox.events, "position_of", bring_and_tell)
    again = runs.start(trigger, run.attempt)
    assert payloads(await value_of(again)) == {"orders": {"db": "a"}, "paid": {"db": "b"}}
    assert key == again.attempt.wait_id
