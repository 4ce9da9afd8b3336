"""A follower receives each event of its sources once, in commit order, from its start position."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from contract.processes import appender, ended, start
from contract.support import RETRY_TIMEOUT, eventually, new_event, read_all
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import text

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.changes import DataVersionSignal, NoSignal, NotificationSignal
from deferrable_ops.inbox.events.events import StoredEvent
from deferrable_ops.inbox.events.feed import Feed, Follower

WITHIN = 20.0
SOURCES = ["channel:a", "channel:b", "channel:c"]
LISTENERS = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"


async def took(follower: Follower, count: int) -> list[StoredEvent]:
    """Return the next `count` events, or a few more."""
    taken: list[StoredEvent] = []
    async with asyncio.timeout(WITHIN):
        while len(taken) < count:
            taken += await follower.next()
    return taken


async def went_live(*followers: Follower) -> None:
    async def all_live() -> bool:
        return all(follower.is_live for follower in followers)

    await eventually(all_live, "the followers to catch up")


def payloads(events: Iterable[StoredEvent]) -> list[Any]:
    return [event.payload for event in events]


async def test_stored_and_new_events_arrive_in_order(two: tuple[Inbox, Inbox]) -> None:
    await two[1].events.append_all([new_event(payload=i) for i in range(450)])
    with two[0].feed.follow(["channel:orders"]) as follower:
        for i in range(450, 470):
            await two[1].events.append(new_event(payload=i))
        assert payloads(await took(follower, 470)) == list(range(470))


async def test_follower_starts_at_its_time_or_number(inbox: Inbox) -> None:
    appended = await inbox.events.append_all(
        [new_event(payload=i, time=1000.0 + i) for i in (0, 5, 1, 6, 2, 7)]
    )
    with (
        inbox.feed.follow(["channel:orders"], since=1005.0) as by_time,
        inbox.feed.follow(["channel:orders"], after=appended[3].number) as by_number,
        inbox.feed.follow(["channel:orders"], since=1002.0, after=appended[1].number) as by_both,
        inbox.feed.follow(["channel:orders"], since=5000.0) as future,
    ):
        assert payloads(await took(by_time, 3)) == [5, 6, 7]
        assert payloads(await took(by_number, 2)) == [2, 7]
        assert payloads(await took(by_both, 3)) == [6, 2, 7]
        await went_live(by_time, by_number, by_both, future)
        await inbox.events.append_all(
            [new_event(payload="old", time=1.0), new_event(payload="new", time=6e3)]
        )
        assert payloads(await took(by_time, 1)) == payloads(await took(future, 1)) == ["new"]
        assert payloads(await took(by_number, 2)) == ["old", "new"]


async def test_events_of_several_sources_arrive_in_commit_order(inbox: Inbox) -> None:
    with inbox.feed.follow(SOURCES[:2]) as follower, inbox.feed.follow(SOURCES[2:]) as other:
        for i in range(30):
            await inbox.events.append(new_event(SOURCES[i % 3], payload=i))
        assert payloads(await took(follower, 20)) == [i for i in range(30) if i % 3 != 2]
        assert payloads(await took(other, 10)) == list(range(2, 30, 3))


async def test_followers_that_start_and_stop_receive_each_event_once(two: tuple[Inbox, Inbox]) -> None:
    feed = Feed(two[0].database, two[0].events, two[0].watcher, events_per_page=7, max_pending=10)
    total, chance = 400, random.Random(4)
    numbers: list[int] = []

    async def append() -> None:
        for i in range(0, total, 4):
            batch = [new_event(SOURCES[k % 3], payload=k) for k in range(i, i + 4)]
            numbers.extend(one.number for one in await two[1].events.append_all(batch))

    async def follow(after_how_many: int) -> tuple[list[str], int, list[Any]]:
        async def so_many() -> bool:
            return len(numbers) >= after_how_many

        await eventually(so_many, "events")
        sources = chance.sample(SOURCES, chance.randint(1, 3))
        begin = chance.randint(0, after_how_many)
        seen: list[Any] = []
        after = numbers[begin - 1] if begin else 0
        wanted = [k for k in range(begin, total) if SOURCES[k % 3] in sources]
        with feed.follow(sources, after=after) as follower:
            async with asyncio.timeout(60):
                while len(seen) < len(wanted):
                    seen += payloads(await follower.next())
                    await asyncio.sleep(chance.random() / 100)
        return sources, begin, [seen, wanted]

    following = [asyncio.create_task(follow(chance.randint(0, total - 50))) for _ in range(40)]
    await append()
    for _, _, (seen, wanted) in await asyncio.gather(*following):
        assert seen == wanted
    assert feed._followers == {}
    assert feed._behind == {}
    assert not feed._live_sources
    await feed.close()


async def test_slow_follower_does_not_delay_others_and_loses_nothing(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox.feed = Feed(inbox.database, inbox.events, inbox.watcher, max_pending=5)
    _sweep_interval(monkeypatch, 3600.0)
    with inbox.feed.follow(["channel:orders"]) as slow, inbox.feed.follow(["channel:orders"]) as quick:
        await went_live(slow, quick)
        for i in range(40):
            await inbox.events.append(new_event(payload=i))
            assert payloads(await took(quick, 1)) == [i]
        assert not slow.is_live
        assert payloads(await took(slow, 40)) == list(range(40))
        await went_live(slow)


async def test_follower_after_a_future_number_receives_new_events(
    inbox: Inbox,
) -> None:
    """The inbox was restored from a backup: its numbers start again below those that a wait remembers."""
    newest = await inbox.events.newest()
    with inbox.feed.follow(["channel:orders"], after=newest + 1_000_000) as follower:
        await went_live(follower)
        await inbox.events.append(new_event(payload="restored"))
        assert payloads(await took(follower, 1)) == ["restored"]


async def test_events_of_several_processes_are_followed_although_one_is_killed(
    shared_url: str, tmp_path: Path
) -> None:
    inbox = await Inbox.open(shared_url, retry_timeout=RETRY_TIMEOUT)
    before = await inbox.events.newest()
    files = [tmp_path / f"acknowledged-{number}" for number in range(3)]
    seen: list[int] = []

    async def follow(after: int) -> None:
        with inbox.feed.follow(["channel:many"], after=after) as follower:
            while True:
                seen.extend(event.number for event in await follower.next())

    following = asyncio.create_task(follow(before))
    processes = [start(appender, shared_url, number, 200, file) for number, file in enumerate(files)]

    async def some() -> bool:
        return len(seen) > 100

    await eventually(some, "some events")
    processes[0].kill()
    for process in processes:
        await eventually(lambda process=process: ended(process), "the process to end")  # type: ignore[misc]
    numbers = [event.number for event in await read_all(inbox, "channel:many", after=before)]

    async def all_of_them() -> bool:
        return len(seen) >= len(numbers)

    await eventually(all_of_them, "all events")
    following.cancel()
    assert seen == numbers
    # 200 events of each of the two surviving processes, and 200 that all append.
    assert len(numbers) >= 600
    await inbox.close()


async def test_route_selects_the_followers_of_an_event(inbox: Inbox) -> None:
    await inbox.events.append_all([new_event(payload=i % 4) for i in range(40)])
    followers = [inbox.feed.follow(["channel:orders"]) for _ in range(4)]
    inbox.feed.route = lambda event: [followers[event.payload]] if event.payload < 4 else []
    with followers[0], followers[1], followers[2], followers[3]:
        await inbox.events.append_all([new_event(payload=i % 5) for i in range(50)])
        for wanted, follower in enumerate(followers):
            assert payloads(await took(follower, 20)) == [wanted] * 20


async def test_thousand_new_followers_share_the_same_reads(
    two: tuple[Inbox, Inbox],
) -> None:
    await two[1].events.append_all([new_event(payload=i, time=1000.0 + i) for i in range(1000)])
    statements: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    sqlalchemy_event.listen(two[0].database.engine.sync_engine, "before_cursor_execute", note)
    followers = [two[0].feed.follow(["channel:orders"], since=1000.0 + i % 100) for i in range(1000)]
    with ExitStack() as entered:
        for follower in followers:
            entered.enter_context(follower)
        taken = await asyncio.gather(
            *(took(follower, 1000 - i % 100) for i, follower in enumerate(followers))
        )
        await went_live(*followers)
    assert all(payloads(events) == list(range(i % 100, 1000)) for i, events in enumerate(taken))
    assert sum("payload" in statement for statement in statements) < 30


async def test_idle_followers_cost_one_query_a_sweep(
    two: tuple[Inbox, Inbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    _sweep_interval(monkeypatch, 0.05)
    followers = [two[0].feed.follow([f"channel:{i}"]) for i in range(300)]
    statements: list[str] = []

    async def sweeps() -> bool:
        return sum("event_counter" in statement for statement in statements) > 5

    with ExitStack() as entered:
        for follower in followers:
            entered.enter_context(follower)
        await went_live(*followers)
        sqlalchemy_event.listen(
            two[0].database.engine.sync_engine,
            "before_cursor_execute",
            lambda _c, _cursor, statement, *_: statements.append(statement),
        )
        await eventually(sweeps, "a few sweeps")
    assert [statement for statement in statements if "deferrable_ops_events" in statement] == []


async def test_follower_is_woken_by_another_process_with_the_sweep_off(
    two: tuple[Inbox, Inbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    _sweep_interval(monkeypatch, 3600.0)
    with two[0].feed.follow(["channel:orders"]) as follower:
        await went_live(follower)
        if two[0].database.dialect == "postgresql":
            await eventually(lambda: _listeners(two[1]), "LISTEN")
        for i in range(3):
            appended_at = time.monotonic()
            await two[1].events.append(new_event(payload=i))
            assert payloads(await took(follower, 1)) == [i]
            assert time.monotonic() - appended_at < 2
        await two[1].events.append_all([new_event("channel:" + "x" * 9000), new_event(payload="bulk")])
        assert payloads(await took(follower, 1)) == ["bulk"]


async def test_follower_is_woken_by_the_sweep_with_every_signal_off(
    shared_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__NOTIFY", "False")
    monkeypatch.setattr(DataVersionSignal, "run", NoSignal.run)
    _sweep_interval(monkeypatch, 0.2)
    one, other = [await Inbox.open(shared_url, retry_timeout=RETRY_TIMEOUT) for _ in range(2)]
    with one.feed.follow(["channel:orders"]) as follower:
        for i in range(5):
            await other.events.append(new_event(payload=i))
            assert payloads(await took(follower, 1)) == [i]
    await one.close()
    await other.close()


# SQLite keeps no connection that could be closed.
@pytest.mark.parametrize("shared_url", ["postgres"], indirect=True)
async def test_follower_is_woken_after_its_connections_were_closed(
    two: tuple[Inbox, Inbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    _sweep_interval(monkeypatch, 3600.0)
    with two[0].feed.follow(["channel:orders"]) as follower:
        await went_live(follower)
        await eventually(lambda: _listeners(two[1]), "LISTEN")
        others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
        async with two[1].database.begin() as connection:
            await connection.execute(text(f"SELECT pg_terminate_backend(pid) {others}"))
        await two[1].events.append(new_event(payload=1))
        assert payloads(await took(follower, 1)) == [1]


async def test_feed_continues_after_errors_without_repeating_events(inbox: Inbox) -> None:
    inbox.feed = Feed(inbox.database, inbox.events, inbox.watcher, retry_interval=0.01)
    troubles = {3, 8}

    def route(event: StoredEvent) -> Iterable[Follower]:
        if event.payload in troubles:
            troubles.discard(event.payload)
            raise ValueError("a bug")
        return inbox.feed._followers.get(event.source, ())

    inbox.feed.route = route
    await inbox.events.append_all([new_event(payload=i) for i in range(5)])
    with inbox.feed.follow(["channel:orders"]) as follower:
        assert payloads(await took(follower, 5)) == list(range(5))
        await inbox.events.append_all([new_event(payload=i) for i in range(5, 10)])
        assert payloads(await took(follower, 5)) == list(range(5, 10))


async def test_followers_receive_new_events_after_the_database_lost_some(inbox: Inbox) -> None:
    await inbox.events.append_all([new_event(payload=i) for i in range(5)])
    with inbox.feed.follow(["channel:orders"]) as follower:
        await took(follower, 5)
        await went_live(follower)
        async with inbox.database.begin() as connection:
            await connection.execute(text("DELETE FROM deferrable_ops_events WHERE number > 2"))
            await connection.execute(text("UPDATE deferrable_ops_event_counter SET value = 2"))
        inbox.feed.wake()

        async def noticed() -> bool:
            return follower.position == 2

        await eventually(noticed, "the loss to be noticed")
        await inbox.events.append(new_event(payload="after"))
        assert payloads(await took(follower, 1)) == ["after"]


async def _listeners(inbox: Inbox) -> bool:
    async with inbox.database.engine.connect() as connection:
        return bool((await connection.execute(text(f"SELECT count(*) {LISTENERS}"))).scalar_one())


def _sweep_interval(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for signal in (DataVersionSignal, NotificationSignal, NoSignal):
        monkeypatch.setattr(signal, "sweep_interval", seconds)
