"""The shared poller, over gRPC: its calls, its updates, and the errors that it survives."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from deferrable_ops.error_table import CODES
from deferrable_ops.outages import outages
from deferrable_ops.testing.dataflow import FakeDataflow, FakeJob, Step
from deferrable_ops.upstreams.dataflow.client import (
    Dataflow,
    JobWatch,
    MessageCursor,
    MessagesWanted,
    ReadProblem,
    Update,
)
from deferrable_ops.upstreams.dataflow.jobs import DONE, FAILED, PAUSED, QUEUED, RUNNING, UPDATED
from deferrable_ops.upstreams.dataflow.poller import Poller

TRANSIENT = next(row.codes for row in CODES if row.system == "google")

INTERVAL = 0.05


def job_of(fake: FakeDataflow, name: str = "etl") -> FakeJob:
    """Create a job without further steps."""
    fake.script(name)
    return fake.create(name, "p", "r", {"team": "a"}, {})


async def next_state(watch: JobWatch) -> int:
    """Return the next state, ignoring messages before it."""
    while (update := await asyncio.wait_for(watch.next(), 20)).job is None:
        pass
    return update.job.state


async def messages_of(watch: JobWatch, count: int) -> list[Update]:
    """Return the updates until `count` messages were delivered."""
    updates: list[Update] = []
    while sum(len(update.messages) for update in updates) < count:
        updates.append(await asyncio.wait_for(watch.next(), 20))
    return updates


async def lists(fake: FakeDataflow, more: int) -> Counter[str]:
    """Wait until the poller has listed the jobs `more` times, and return the calls made meanwhile."""
    before = Counter(fake.trouble.calls)
    while fake.trouble.calls["ListJobs"] < before["ListJobs"] + more:
        await asyncio.sleep(0.005)
    return fake.trouble.calls - before


@asynccontextmanager
async def watching(
    fake: FakeDataflow,
    dataflow: Dataflow,
    count: int,
    messages: MessagesWanted | None = None,
    interval: float = INTERVAL,
) -> AsyncIterator[list[JobWatch]]:
    """Watch some jobs, after the first update of each."""
    jobs = [job_of(fake, f"etl-{number}") for number in range(count)]
    with ExitStack() as stack:
        watches = [
            stack.enter_context(dataflow.watch(job.id, interval=interval, messages=messages)) for job in jobs
        ]
        assert {await next_state(watch) for watch in watches} == {QUEUED}
        yield watches


async def test_every_change_of_state_is_delivered(fake: FakeDataflow, dataflow: Dataflow) -> None:
    job = job_of(fake)
    with dataflow.watch(job.id, interval=INTERVAL) as watch:
        assert await next_state(watch) == QUEUED
        for name, number in (
            ("RUNNING", RUNNING),
            ("PAUSED", PAUSED),
            (99, 99),
            ("STOPPED", 1),
            ("DONE", DONE),
        ):
            job.move(name)
            assert await next_state(watch) == number


async def test_finished_job_is_delivered_with_its_labels_and_ends_the_watch(
    fake: FakeDataflow, dataflow: Dataflow
) -> None:
    job = job_of(fake)
    job.move("DONE")
    with dataflow.watch(job.id, interval=INTERVAL) as watch:
        update = await watch.next()
        assert update.job is not None
        assert update.job.labels == {"team": "a"}
        with pytest.raises(RuntimeError, match="it has no further updates"):
            await watch.next()
        calls = fake.trouble.calls["ListJobs"]
        with dataflow.watch(job_of(fake, "other").id, interval=INTERVAL) as other:
            assert await next_state(other) == QUEUED
        assert fake.trouble.calls["GetJob"] == 1
        assert fake.trouble.calls["ListJobs"] > calls


async def test_updated_job_names_its_replacement(fake: FakeDataflow, dataflow: Dataflow) -> None:
    job = job_of(fake)
    with dataflow.watch(job.id, interval=INTERVAL) as watch:
        assert await next_state(watch) == QUEUED
        replacement = fake.replace(job.id)
        update = await watch.next()
        assert update.job is not None
        assert (update.job.state, update.job.replaced_by) == (UPDATED, replacement)


async def test_job_is_delivered_again_when_its_type_becomes_known(
    fake: FakeDataflow, dataflow: Dataflow
) -> None:
    fake.script("etl", streaming=True, hides_type=True)
    job = fake.create("etl", "p", "r", {}, {})
    with dataflow.watch(job.id, interval=INTERVAL) as watch:
        first = await watch.next()
        job.move("RUNNING")
        second = await watch.next()
    assert first.job is not None
    assert second.job is not None
    assert (first.job.is_streaming, second.job.is_streaming) == (None, True)


async def test_new_job_that_is_missing_from_lists_is_delivered(
    fake: FakeDataflow, dataflow: Dataflow
) -> None:
    fake.list_lag = 3600
    with dataflow.watch(job_of(fake).id, interval=INTERVAL) as watch:
        assert await next_state(watch) == QUEUED


async def test_calls_do_not_grow_with_the_number_of_watches(fake: FakeDataflow, dataflow: Dataflow) -> None:
    async with watching(fake, dataflow, 60, MessagesWanted()) as _:
        calls = await lists(fake, 5)
    assert calls["GetJob"] == 0
    assert calls["ListJobMessages"] <= 10 * (calls["ListJobs"] + 1)


async def test_each_job_that_left_the_list_is_read_once(fake: FakeDataflow, dataflow: Dataflow) -> None:
    async with watching(fake, dataflow, 20) as watches:
        for number in range(20):
            fake.move(f"etl-{number}", "DONE")
        assert [await next_state(watch) for watch in watches] == [DONE] * 20
        assert fake.trouble.calls["GetJob"] == 20


async def test_watches_that_start_together_share_their_lists(fake: FakeDataflow, dataflow: Dataflow) -> None:
    async with watching(fake, dataflow, 60, interval=3600) as _:
        assert fake.trouble.calls["ListJobs"] == 1


async def test_new_watch_gets_its_job_before_the_interval_is_over(
    fake: FakeDataflow, dataflow: Dataflow
) -> None:
    with dataflow.watch(job_of(fake, "one").id, interval=3600) as one:
        assert await next_state(one) == QUEUED
        with dataflow.watch(job_of(fake, "two").id, interval=3600) as two:
            assert await next_state(two) == QUEUED


async def test_polling_stops_without_watches(fake: FakeDataflow, dataflow: Dataflow) -> None:
    with dataflow.watch(job_of(fake).id, interval=INTERVAL) as watch:
        await next_state(watch)
    poller = dataflow._poller
    assert poller._polling is None
    assert not poller._watches


async def test_all_pages_of_the_list_are_read(fake: FakeDataflow, dataflow: Dataflow) -> None:
    fake.page_limit = 7
    async with watching(fake, dataflow, 20) as _:
        assert fake.trouble.calls["GetJob"] == 0


@pytest.mark.parametrize("code", sorted(TRANSIENT))
async def test_transient_errors_do_not_fail_a_watch(
    fake: FakeDataflow, dataflow: Dataflow, code: str
) -> None:
    job = job_of(fake)
    for method in ("ListJobs", "GetJob", "ListJobMessages"):
        fake.trouble.fail(method, code, times=2)
    with dataflow.watch(job.id, interval=INTERVAL, messages=MessagesWanted()) as watch:
        job.move("FAILED")
        job.say("it broke", "ERROR")
        # The messages may be read before the job, or after it.
        updates = [await asyncio.wait_for(watch.next(), 20)]
        while not any(update.job for update in updates) or not any(update.messages for update in updates):
            updates.append(await asyncio.wait_for(watch.next(), 20))
    assert [update.job.state for update in updates if update.job is not None] == [FAILED]
    assert [message.text for update in updates for message in update.messages] == ["it broke"]


async def test_polling_resumes_after_a_lost_connection(
    fake: FakeDataflow, dataflow: Dataflow, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(fake, dataflow, 20) as watches:
        await fake.disconnect()
        for number in range(20):
            fake.move(f"etl-{number}", "DONE")
        while "jobs are watched" not in caplog.text:
            await asyncio.sleep(0.005)
        await fake.connect()
        assert [await next_state(watch) for watch in watches] == [DONE] * 20


async def problem_of(watch: JobWatch) -> ReadProblem:
    """Return the next error of a read, ignoring other updates before it."""
    while (update := await asyncio.wait_for(watch.next(), 20)).problem is None:
        pass
    return update.problem


def active_outages() -> list[str]:
    return [outage.error for outage in outages.active() if outage.source == "Dataflow (p, r)"]


@pytest.mark.parametrize("code", ["NOT_FOUND", "PERMISSION_DENIED", "UNAVAILABLE"])
async def test_job_that_cannot_be_read_is_reported_to_its_own_watches_only(
    fake: FakeDataflow, dataflow: Dataflow, code: str
) -> None:
    job, stopped = job_of(fake, "one"), job_of(fake, "two")
    stopped.move("STOPPED")  # so that the list of active jobs does not contain it
    fake.trouble.fail("GetJob", code, times=2)
    with (
        dataflow.watch(job.id, interval=INTERVAL) as watch,
        dataflow.watch(stopped.id, interval=INTERVAL) as unread,
    ):
        assert code in str((await problem_of(unread)).error)
        assert (await problem_of(unread)).seconds > 0
        update = await watch.next()
        assert update.problem is None
        assert active_outages() == []
        assert await next_state(unread) == 1
        job.move("RUNNING")
        assert await next_state(watch) == RUNNING


async def test_seconds_of_a_problem_count_from_the_first_read_with_the_same_error(
    fake: FakeDataflow, dataflow: Dataflow
) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 60
        return now

    dataflow._poller = Poller(dataflow._api, dataflow._api.target, clock=clock)
    fake.trouble.fail("GetJob", "PERMISSION_DENIED")
    with dataflow.watch("no-such-job", interval=INTERVAL) as watch:
        problems = [await problem_of(watch) for _ in range(3)]
    assert [(problem.error.code, problem.seconds, problem.reads) for problem in problems] == [
        ("PERMISSION_DENIED", 0, 1),
        ("NOT_FOUND", 0, 1),
        ("NOT_FOUND", 60, 2),
    ]


@pytest.mark.parametrize(
    "code", ["PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED", "NOT_FOUND", "UNAVAILABLE", "INTERNAL"]
)
async def test_jobs_are_read_one_by_one_while_the_list_fails(
    fake: FakeDataflow, dataflow: Dataflow, code: str
) -> None:
    async with watching(fake, dataflow, 20, MessagesWanted()) as watches:
        fake.trouble.fail("ListJobs", code, "no list", times=None)
        for number in range(20):
            fake.move(f"etl-{number}", "RUNNING")
        assert [await next_state(watch) for watch in watches] == [RUNNING] * 20
        fake.say("etl-7", "heard", "WARNING")
        await messages_of(watches[7], 1)
        assert "no list" in active_outages()[0]
        # A call that succeeds does not end the outage of the list.
        await dataflow.get(fake.job("etl-1").id)
        assert active_outages()
        for number in range(20):
            fake.move(f"etl-{number}", "DONE")
        assert [await next_state(watch) for watch in watches] == [DONE] * 20


async def test_outage_ends_with_the_next_list(fake: FakeDataflow, dataflow: Dataflow) -> None:
    async with watching(fake, dataflow, 1) as _:
        fake.trouble.fail("ListJobs", "PERMISSION_DENIED", times=3)
        while not active_outages():
            await asyncio.sleep(0.005)
        while active_outages():
            await asyncio.sleep(0.005)
    assert fake.trouble.calls["GetJob"] >= 3


async def test_only_some_jobs_are_read_while_dataflow_does_not_answer_at_all(
    fake: FakeDataflow, dataflow: Dataflow
) -> None:
    async with watching(fake, dataflow, 60) as watches:
        for method in ("ListJobs", "GetJob"):
            fake.trouble.fail(method, "UNAVAILABLE", times=None)
        calls = await lists(fake, 3)
        assert 0 < calls["GetJob"] <= 20 * calls["ListJobs"]
        fake.trouble.mend()
        for number in range(60):
            fake.move(f"etl-{number}", "RUNNING")
        assert [await next_state(watch) for watch in watches] == [RUNNING] * 60


async def test_failed_page_is_requested_again(fake: FakeDataflow, dataflow: Dataflow) -> None:
    fake.page_limit = 7
    fake.trouble.fail("ListJobs", "UNAVAILABLE", times=2, skip=1)
    async with watching(fake, dataflow, 20) as _:
        assert fake.trouble.calls["GetJob"] == 0
        assert active_outages() == []


async def test_missing_permission_for_messages_does_not_fail_a_watch(
    fake: FakeDataflow, dataflow: Dataflow, caplog: pytest.LogCaptureFixture
) -> None:
    fake.trouble.fail("ListJobMessages", "PERMISSION_DENIED", times=None)
    async with watching(fake, dataflow, 3, MessagesWanted()) as watches:
        for number in range(3):
            fake.move(f"etl-{number}", "FAILED")
        assert [await next_state(watch) for watch in watches] == [FAILED] * 3
    assert "dataflow.messages.list" in caplog.text


async def test_unreadable_messages_of_one_job_do_not_affect_other_jobs(
    fake: FakeDataflow, dataflow: Dataflow
) -> None:
    job = job_of(fake)
    fake.trouble.fail("ListJobMessages", "NOT_FOUND")
    with dataflow.watch(job.id, interval=INTERVAL, messages=MessagesWanted()) as watch:
        assert await next_state(watch) == QUEUED
        job.say("heard", "WARNING")
        await messages_of(watch, 1)


async def test_unexpected_error_does_not_stop_the_poller(
    fake: FakeDataflow, dataflow: Dataflow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    api, list_jobs = dataflow._api, dataflow._api.list_jobs
    times = iter([True, True])

    async def broken() -> list[object]:
        if next(times, False):
            raise ZeroDivisionError
        return await list_jobs()

    monkeypatch.setattr(api, "list_jobs", broken)
    with dataflow.watch(job_of(fake).id, interval=INTERVAL) as watch:
        assert await next_state(watch) == QUEUED
    assert "ZeroDivisionError" in caplog.text


async def test_failed_job_is_delivered_together_with_its_error_messages(
    fake: FakeDataflow, dataflow: Dataflow
) -> None:
    fake.script("etl", Step("RUNNING"), Step("FAILED", message="out of memory"))
    job = fake.create("etl", "p", "r", {}, {})
    with dataflow.watch(job.id, interval=INTERVAL, messages=MessagesWanted()) as watch:
        update = await watch.next()
    assert update.job is not None
    assert update.job.state == FAILED
    assert [(message.importance, message.text) for message in update.messages] == [("ERROR", "out of memory")]


async def test_messages_are_delivered_once_while_the_job_runs(fake: FakeDataflow, dataflow: Dataflow) -> None:
    job = job_of(fake)
    texts = [f"message {number}" for number in range(30)]
    fake.page_limit = 4
    with dataflow.watch(job.id, interval=INTERVAL, messages=MessagesWanted("BASIC")) as watch:
        told: list[str] = []
        for text in texts:
            job.say(text, "WARNING")
            job.say("not asked for", "DEBUG")
            told += [message.text for update in await messages_of(watch, 1) for message in update.messages]
        job.move("DONE")
        assert (await watch.next()).messages == ()
    assert told == texts


async def test_messages_are_not_repeated_after_a_restart(fake: FakeDataflow, dataflow: Dataflow) -> None:
    job = job_of(fake)
    job.say("before", "WARNING")
    with dataflow.watch(job.id, interval=INTERVAL, messages=MessagesWanted()) as watch:
        stored = (await messages_of(watch, 1))[-1].cursor
    assert stored is not None
    after = MessageCursor.from_json(stored.as_json())
    job.say("after", "WARNING")
    with dataflow.watch(job.id, interval=INTERVAL, messages=MessagesWanted(after=after)) as watch:
        again = [message.text for update in await messages_of(watch, 1) for message in update.messages]
    assert again == ["after"]


async def test_late_messages_are_delivered(fake: FakeDataflow, dataflow: Dataflow) -> None:
    job = job_of(fake)
    job.say("prompt", "WARNING")
    with dataflow.watch(job.id, interval=INTERVAL, messages=MessagesWanted()) as watch:
        await messages_of(watch, 1)
        job.say("late", "WARNING", at=job.messages[0].time - 5)
        assert [message.text for message in (await messages_of(watch, 1))[-1].messages] == ["late"]


async def test_messages_of_all_jobs_are_read_in_turn(fake: FakeDataflow, dataflow: Dataflow) -> None:
    async with watching(fake, dataflow, 35, MessagesWanted()) as watches:
        for job in fake.jobs():
            job.say("heard", "WARNING")
        for watch in watches:
            await messages_of(watch, 1)


async def test_two_watches_of_one_job_both_get_its_changes(fake: FakeDataflow, dataflow: Dataflow) -> None:
    job = job_of(fake)
    with (
        dataflow.watch(job.id, interval=INTERVAL) as one,
        dataflow.watch(job.id, interval=INTERVAL) as two,
    ):
        assert [await next_state(one), await next_state(two)] == [QUEUED, QUEUED]
        job.move("DONE")
        assert [await next_state(one), await next_state(two)] == [DONE, DONE]
        assert fake.trouble.calls["GetJob"] == 1
