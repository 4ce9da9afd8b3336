"""A wait ends at its deadline, or when expected heartbeats that could have arrived did not."""

from __future__ import annotations

import asyncio

import pytest
from contract.support import RETRY_TIMEOUT, eventually, new_wait, register, send
from sqlalchemy import update

from deferrable_ops.inbox import Inbox, WaitState
from deferrable_ops.inbox.database.database import Transaction
from deferrable_ops.inbox.database.schema import waits
from deferrable_ops.inbox.waits.callbacks import Verb
from deferrable_ops.inbox.waits.endpoints import Endpoints
from deferrable_ops.inbox.watcher import Watcher
from deferrable_ops.outcome import Failure

LONG_AGO = 1.0


async def state_of(inbox: Inbox, wait_id: str) -> WaitState:
    return (await inbox.waits.get(wait_id)).state


async def test_deadline_expires_a_wait_from_any_process(two: tuple[Inbox, Inbox]) -> None:
    late, other = await register(two[0], timeout=0.2), await register(two[0])
    with two[1].watcher.subscribe(other.id):

        async def ended() -> bool:
            return await state_of(two[0], late.id) is WaitState.EXPIRED

        await eventually(ended, "the deadline")
    assert await state_of(two[0], other.id) is WaitState.WAITING


async def test_deadline_wakes_its_wait(inbox: Inbox) -> None:
    wait = await register(inbox, timeout=0.2)
    with inbox.watcher.subscribe(wait.id) as changes:
        async with asyncio.timeout(20):
            while (await changes.next()).state is not WaitState.EXPIRED:
                pass


async def test_many_deadlines_that_pass_together_all_expire(inbox: Inbox) -> None:
    late = await asyncio.gather(*(inbox.waits.register(new_wait(late=True)) for _ in range(1100)))
    await inbox.waits.expire(None)
    assert {wait.state for wait in await inbox.waits.get_many([wait.id for wait in late])} == {
        WaitState.EXPIRED
    }


async def test_wait_without_a_timely_heartbeat_fails(inbox: Inbox) -> None:
    wait = await register(inbox, heartbeat_timeout=0.0)
    await inbox.waits.expire(LONG_AGO)
    failed = await inbox.waits.get(wait.id)
    assert failed.state is WaitState.FAILED
    assert failed.outcome == Failure("no heartbeat arrived within heartbeat_timeout")
    assert (await send(inbox, wait.id, None, Verb.HEARTBEAT)).status == 409


async def test_wait_that_expects_no_heartbeats_does_not_fail(inbox: Inbox) -> None:
    wait = await register(inbox)
    await inbox.waits.expire(LONG_AGO)
    assert await state_of(inbox, wait.id) is WaitState.WAITING


async def test_missing_heartbeats_do_not_count_while_no_endpoint_runs(inbox: Inbox) -> None:
    wait = await register(inbox, heartbeat_timeout=0.0)
    await inbox.waits.expire(None)
    assert await state_of(inbox, wait.id) is WaitState.WAITING


async def test_heartbeats_get_a_full_interval_after_an_outage(inbox: Inbox) -> None:
    await register(inbox, heartbeat_timeout=0.0)
    silent = await register(inbox, heartbeat_timeout=0.001)
    patient = await register(inbox, heartbeat_timeout=60.0)
    await inbox.waits.expire(await inbox.database.now() - 30)
    assert await state_of(inbox, silent.id) is WaitState.FAILED
    assert await state_of(inbox, patient.id) is WaitState.WAITING


@pytest.mark.parametrize(
    ("verb", "payload"),
    [(Verb.HEARTBEAT, None), (Verb.HEARTBEAT, {"progress": 0.4}), (Verb.POST, {"step": 1})],
)
async def test_heartbeats_and_progress_restart_the_timeout_every_time(
    inbox: Inbox, verb: Verb, payload: object
) -> None:
    wait = await register(inbox, heartbeat_timeout=60.0, expected={"success_when": "done"})
    beats = []
    for _ in range(2):
        assert (await send(inbox, wait.id, payload, verb)).status in (200, 202)
        beats.append((await inbox.waits.get(wait.id)).last_beat or 0)
        await eventually(lambda: _later_than(inbox, beats[-1]), "the clock to go on")
    assert wait.created_at < beats[0] < beats[1]
    assert (await inbox.waits.get(wait.id)).deadline == wait.deadline


async def test_wait_whose_heartbeats_stop_fails_while_an_endpoint_runs(two: tuple[Inbox, Inbox]) -> None:
    wait = await register(two[0], heartbeat_timeout=0.5)
    announcing = asyncio.create_task(two[1].endpoints.announce())
    with two[0].watcher.subscribe(wait.id) as changes:
        async with asyncio.timeout(20):
            while (ended := await changes.next()).state is WaitState.WAITING:
                pass
    announcing.cancel()
    assert ended.outcome == Failure("no heartbeat arrived within heartbeat_timeout")


async def test_endpoint_counts_as_running_while_it_announces_itself(shared_url: str) -> None:
    inbox = await Inbox.open(shared_url, retry_timeout=RETRY_TIMEOUT)
    endpoints = Endpoints(inbox.database, announce_interval=0.02, down_after=0.5)
    assert await endpoints.up_since() is None
    await register(inbox, heartbeat_timeout=60.0)
    announcing = asyncio.create_task(endpoints.announce())
    first = await eventually(endpoints.up_since, "the endpoint")
    second_announcing = asyncio.create_task(endpoints.announce())

    async def younger() -> bool:
        return (await endpoints.up_since() or 0) > first

    await eventually(younger, "the second endpoint's start")
    announcing.cancel()
    second_announcing.cancel()

    async def all_down() -> bool:
        return await endpoints.up_since() is None

    await eventually(all_down, "the endpoints to count as down")
    await inbox.close()


async def test_endpoint_writes_nothing_while_no_wait_expects_heartbeats(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoints = Endpoints(inbox.database, announce_interval=0.01)
    asked = asyncio.Event()
    real = inbox.database.read

    async def read(work: object) -> object:
        result = await real(work)  # type: ignore[arg-type]
        asked.set()
        return result

    monkeypatch.setattr(inbox.database, "read", read)
    announcing = asyncio.create_task(endpoints.announce())
    for _ in range(3):
        asked.clear()
        await asked.wait()
    announcing.cancel()
    assert await endpoints.up_since() is None


async def test_expire_returns_the_seconds_until_the_next_deadline(inbox: Inbox) -> None:
    assert await inbox.waits.expire(None) == float("inf")
    await register(inbox, timeout=60)
    await register(inbox, timeout=30)
    assert 0 < await inbox.waits.expire(None) <= 30


async def test_paused_watcher_gives_heartbeats_another_interval(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a pause of the triggerer, heartbeats look overdue only because it did not run."""
    seen: list[float | None] = []

    async def expire(beats_since: float | None) -> float:
        seen.append(beats_since)
        return float("inf")

    times = iter([1000.0, 1001.0, 1060.0, 1061.0])
    done = asyncio.Event()

    async def now() -> float:
        value = next(times, None)
        if value is None:
            done.set()
            await asyncio.Event().wait()
        return value or 0

    monkeypatch.setattr(inbox.waits, "expire", expire)
    monkeypatch.setattr(inbox.database, "now", now)
    monkeypatch.setattr(inbox.endpoints, "up_since", lambda: _value(500.0))
    watcher = Watcher(inbox.database, inbox.waits, inbox.endpoints, expire_interval=0)
    with watcher.subscribe("nothing"):
        await done.wait()
    await watcher.close()
    assert seen == [1000.0, 1000.0, 1060.0, 1060.0]


async def _later_than(inbox: Inbox, moment: float) -> bool:
    return await inbox.database.now() > moment


async def _value(value: float) -> float:
    return value


async def unseen(inbox: Inbox, wait_id: str, seconds: float, timeout: float) -> float:
    """Pretend that no triggerer has run the wait's trigger for some seconds; return the deadline."""
    chosen = waits.c.id == wait_id

    async def write(transaction: Transaction) -> float:
        now = transaction.now
        row = {"seen_at": now - seconds, "deadline": now - seconds + timeout}
        await transaction.connection.execute(update(waits).where(chosen).values(**row))
        return float(row["deadline"])

    return await inbox.database.write(write)


async def test_deadline_that_pauses_does_not_count_time_without_a_triggerer(inbox: Inbox) -> None:
    wait = await register(inbox, deadline_pauses=True)
    deadline = await unseen(inbox, wait.id, seconds=300.0, timeout=60.0)
    assert await inbox.waits.expire(None) == float("inf"), "the paused deadline is not the next one"
    assert await state_of(inbox, wait.id) is WaitState.WAITING
    await inbox.waits.mark_seen([wait.id])
    moved = (await inbox.waits.get(wait.id)).deadline
    assert moved - deadline == pytest.approx(300.0, abs=10.0)
    await inbox.waits.mark_seen([wait.id])
    assert (await inbox.waits.get(wait.id)).deadline == moved, "time with a triggerer counts"


async def test_deadline_that_pauses_passes_while_a_triggerer_runs(inbox: Inbox) -> None:
    wait = await register(inbox, deadline_pauses=True)
    await unseen(inbox, wait.id, seconds=5.0, timeout=1.0)
    await inbox.waits.mark_seen([wait.id])
    await inbox.waits.expire(None)
    assert await state_of(inbox, wait.id) is WaitState.EXPIRED


async def test_deadline_pauses_for_at_most_30_days(inbox: Inbox) -> None:
    wait = await register(inbox, deadline_pauses=True)
    await unseen(inbox, wait.id, seconds=29 * 86_400.0, timeout=60.0)
    await inbox.waits.expire(None)
    assert await state_of(inbox, wait.id) is WaitState.WAITING
    await unseen(inbox, wait.id, seconds=31 * 86_400.0, timeout=60.0)
    await inbox.waits.expire(None)
    assert await state_of(inbox, wait.id) is WaitState.EXPIRED


async def test_wait_is_seen_while_its_trigger_is_subscribed(two: tuple[Inbox, Inbox]) -> None:
    wait = await register(two[0], deadline_pauses=True)
    deadline = await unseen(two[0], wait.id, seconds=300.0, timeout=60.0)

    async def moved() -> bool:
        return (await two[0].waits.get(wait.id)).deadline > deadline + 200.0

    with two[1].watcher.subscribe(wait.id):
        await eventually(moved, "the deadline to move")


async def test_deadline_that_does_not_pause_counts_all_time(inbox: Inbox) -> None:
    wait = await register(inbox, timeout=0.01)
    await inbox.waits.mark_seen([wait.id])
    await asyncio.sleep(0.02)
    await inbox.waits.expire(None)
    assert await state_of(inbox, wait.id) is WaitState.EXPIRED
