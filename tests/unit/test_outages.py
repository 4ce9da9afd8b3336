"""Outages are in a task's log after 30 s and then at doubling intervals, and in the reason of a timeout."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import ExitStack
from contextvars import ContextVar
from itertools import pairwise

import pytest

from deferrable_ops import outages as module
from deferrable_ops.outages import DEPLOYMENT, INBOX, Outages

KAFKA = "Kafka (logs)"
DOWN = "no broker answers"


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outages(clock: Clock) -> Outages:
    return Outages(clock)


async def test_log_has_an_outage_after_30_s_and_then_at_doubling_intervals_up_to_an_hour(
    clock: Clock, outages: Outages, caplog: pytest.LogCaptureFixture
) -> None:
    began, written = clock.now, []
    with outages.follow((KAFKA,), logging.getLogger("task")):
        while clock.now < began + 30_000:
            outages.failed(KAFKA, DOWN)
            outages.write_due_lines()
            written += [clock.now - began] * len(caplog.records)
            caplog.clear()
            clock.now += 5
    assert written[:5] == [30, 90, 210, 450, 930]
    intervals = [after - before for before, after in pairwise(written)]
    assert max(intervals) == 3600
    assert intervals[-3:] == [3600, 3600, 3600]


async def test_log_has_the_end_of_an_outage_that_it_has(
    clock: Clock, outages: Outages, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with outages.follow((KAFKA,), logging.getLogger("task")):
        for seconds in (10, 45):
            outages.failed(KAFKA, DOWN)
            outages.write_due_lines()
            clock.now += seconds
            outages.write_due_lines()
            outages.recovered(KAFKA)
            outages.write_due_lines()
    assert caplog.messages == [
        f"{KAFKA} has been unreachable for 45 s; retrying until the deadline: {DOWN}",
        f"{KAFKA} can be reached again",
    ]


async def test_wait_that_begins_during_an_outage_logs_it_after_30_s_of_its_own(
    clock: Clock, outages: Outages, caplog: pytest.LogCaptureFixture
) -> None:
    outages.failed(KAFKA, DOWN)
    clock.now += 1000
    with outages.follow((KAFKA,), logging.getLogger("task")):
        for _ in range(2):
            outages.write_due_lines()
            clock.now += 29
        assert not caplog.messages
        outages.write_due_lines()
    assert "for 58 s" in caplog.text


async def test_only_the_waits_of_a_system_log_its_outage_and_all_log_one_of_the_inbox(
    clock: Clock, outages: Outages, caplog: pytest.LogCaptureFixture
) -> None:
    with outages.follow((KAFKA,), logging.getLogger("kafka")), outages.follow((), logging.getLogger("other")):
        outages.failed(KAFKA, DOWN)
        outages.failed(INBOX, "connection refused")
        outages.write_due_lines()
        clock.now += 40
        outages.write_due_lines()
    logged = {(record.name, record.getMessage().split(" has ")[0]) for record in caplog.records}
    assert logged == {("kafka", KAFKA), ("kafka", INBOX), ("other", INBOX)}


async def test_outage_of_thousands_of_waits_is_logged_by_all_but_a_few_at_a_time(
    clock: Clock, outages: Outages, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = 5_000
    monkeypatch.setattr(module, "_TICK", 0.0)
    monkeypatch.setattr(module, "_TURN_PAUSE", 0.0)
    written: list[int] = []

    class Log:
        def __init__(self, number: int) -> None:
            self._number = number

        def warning(self, *_: object) -> None:
            written.append(self._number)

        info = warning

    async def lines_of_each_iteration() -> list[int]:
        counts = [0]
        while sum(counts) < waits:
            before = len(written)
            await asyncio.sleep(0)
            counts.append(len(written) - before)
        return counts

    with ExitStack() as all_waits:
        for number in range(waits):
            all_waits.enter_context(outages.follow((KAFKA,), Log(number)))
        outages.failed(KAFKA, DOWN)
        clock.now += 31
        async with asyncio.timeout(60):
            counts = await lines_of_each_iteration()
            assert sorted(written) == list(range(waits))
            written.clear()
            outages.recovered(KAFKA)
            counts += await lines_of_each_iteration()
            assert sorted(written) == list(range(waits))
    assert max(counts) <= 50


async def test_wait_that_ends_before_its_turn_writes_nothing(
    clock: Clock, outages: Outages, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_LINES_PER_TURN", 1)
    followers = {
        f"task {number}": outages.follow((KAFKA,), logging.getLogger(f"task {number}")) for number in range(3)
    }
    for follower in followers.values():
        outages.add(follower)
    outages.failed(KAFKA, DOWN)
    clock.now += 31
    assert outages.write_due_lines()
    [first] = caplog.records
    ended, left = followers.keys() - {first.name}
    outages.remove(followers.pop(ended))
    while outages.write_due_lines():
        pass
    assert [record.name for record in caplog.records] == [first.name, left]
    for follower in followers.values():
        outages.remove(follower)


async def test_lines_are_written_in_the_context_of_the_trigger(clock: Clock, outages: Outages) -> None:
    """Airflow selects the task's log by the context."""
    task: ContextVar[str] = ContextVar("task", default="none")
    seen: list[str] = []

    class Log:
        def warning(self, *_: object) -> None:
            seen.append(task.get())

    token = task.set("load")
    follower = outages.follow((DEPLOYMENT,), Log())
    task.reset(token)
    with follower:
        outages.failed(DEPLOYMENT, "a wrong Fernet key")
        outages.write_due_lines()
        clock.now += 31
        outages.write_due_lines()
    assert seen == ["load"]


async def test_reason_of_a_timeout_has_the_longest_outage(clock: Clock, outages: Outages) -> None:
    follower = outages.follow((KAFKA, "SQS (queue)"), logging.getLogger("task"))
    outages.failed("SQS (queue)", "throttled")
    clock.now += 4
    outages.recovered("SQS (queue)")
    for seconds in (30, 11):
        outages.failed(KAFKA, DOWN)
        clock.now += seconds
        outages.recovered(KAFKA)
    assert follower.describe(45) == f"{KAFKA} was unreachable for 41 of 45 s: {DOWN}"
    outages.failed(INBOX, "connection refused")
    clock.now += 100
    assert follower.describe(145) == "the inbox was unreachable for 100 of 145 s: connection refused"
    assert follower.describe(0.5) is None


async def test_outage_before_a_wait_or_of_another_system_is_not_in_its_reason(
    clock: Clock, outages: Outages
) -> None:
    outages.failed(KAFKA, DOWN)
    clock.now += 100
    outages.recovered(KAFKA)
    follower = outages.follow((KAFKA,), logging.getLogger("task"))
    outages.failed("Kafka (other)", DOWN)
    clock.now += 10
    assert follower.describe(10) is None


def test_outage_that_is_not_reported_again_ends_when_it_was_last_seen(clock: Clock, outages: Outages) -> None:
    outages.failed(KAFKA, DOWN, lasts=60)
    clock.now += 59
    outages.failed(KAFKA, "refused", lasts=60)
    (outage,) = outages.active()
    assert (clock.now - outage.since, outage.error) == (59, "refused")
    clock.now += 61
    assert not outages.active()
    assert outages.describe((KAFKA,), 0, 500) == f"{KAFKA} was unreachable for 59 of 500 s: refused"


def test_reports_may_come_from_any_thread(outages: Outages) -> None:
    def report() -> None:
        for _ in range(500):
            outages.failed(KAFKA, DOWN)
            outages.recovered(KAFKA)

    threads = [threading.Thread(target=report) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not outages.active()
