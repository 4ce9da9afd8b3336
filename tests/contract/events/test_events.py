"""Events: each is stored once, numbered in commit order, and read in that order."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from contract.processes import appender, start
from contract.support import RETRY_TIMEOUT, new_event, read_all
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.events.events import SourcePosition
from real_airflow.waiting import wait_until

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@dataclass(frozen=True)
class Key:
    key: str
    within: float | None = None


async def test_event_is_read_as_it_was_appended(inbox: Inbox) -> None:
    before = await inbox.database.now()
    event = new_event("channel:a", "k", payload={"rows": [1, "ü", None]}, attributes={"headers": {"x": "y"}})
    appended = await inbox.events.append(event)
    (kept,) = await read_all(inbox, "channel:a")
    assert (kept.number, kept.source, kept.dedupe_key) == (appended.number, "channel:a", "k")
    assert (kept.payload, kept.attributes) == (event.payload, event.attributes)
    assert kept.time == kept.received_at == appended.received_at
    assert before <= kept.received_at <= await inbox.database.now()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(payload=JSON, key=st.text(min_size=1, max_size=300))
async def test_any_json_and_any_key_can_be_stored(inbox: Inbox, payload: object, key: str) -> None:
    after = await inbox.events.newest()
    event = new_event(payload=payload, attributes={"key": payload}, dedupe_keys=(Key(f"{after}/{key}"),))
    assert not (await inbox.events.append(event)).is_duplicate
    assert (await inbox.events.append(event)).is_duplicate
    (kept,) = await read_all(inbox, event.source, after=after)
    assert json.dumps([kept.payload, kept.attributes]) == json.dumps([payload, {"key": payload}])


async def test_event_time_of_the_source_is_used(inbox: Inbox) -> None:
    await inbox.events.append_all([new_event(time=1000.25), new_event(time=2000.5), new_event(time=1500.0)])
    assert [event.time for event in await read_all(inbox, "channel:orders")] == [1000.25, 2000.5, 1500.0]
    assert [event.time for event in await read_all(inbox, "channel:orders", since=1500)] == [2000.5, 1500.0]
    first, second, third = await read_all(inbox, "channel:orders")
    assert await inbox.events.first_since(["channel:orders"], 1200) == second.number
    assert await inbox.events.first_since(["channel:orders"], 1.0) == first.number
    assert await inbox.events.first_since(["channel:orders", "channel:none"], 9000) is None
    assert third.number == await inbox.events.newest()


async def test_duplicate_changes_nothing_and_returns_the_first(two: tuple[Inbox, Inbox]) -> None:
    first = await two[0].events.append(new_event(key="same", payload=1))
    again = await two[1].events.append(new_event(key="same", payload=2))
    assert (again.number, again.received_at) == (first.number, first.received_at)
    assert again.is_duplicate
    assert [event.payload for event in await read_all(two[0], "channel:orders")] == [1]


async def test_same_key_of_another_source_is_another_event(inbox: Inbox) -> None:
    one = await inbox.events.append(new_event("channel:a", "same"))
    other = await inbox.events.append(new_event("channel:b", "same"))
    assert not other.is_duplicate
    assert other.number > one.number


async def test_any_dedupe_key_detects_a_duplicate(inbox: Inbox) -> None:
    first = await inbox.events.append(new_event(dedupe_keys=(Key("id:1"), Key("body:x"))))
    for keys in ((Key("id:2"), Key("body:x")), (Key("id:1"),)):
        assert (await inbox.events.append(new_event(dedupe_keys=keys))).number == first.number
    assert not (await inbox.events.append(new_event(dedupe_keys=(Key("id:2"),)))).is_duplicate


async def test_dedupe_key_can_be_limited_in_time(inbox: Inbox) -> None:
    first = await inbox.events.append(new_event(dedupe_keys=(Key("body:x", within=3600),)))
    assert (await inbox.events.append(new_event(dedupe_keys=(Key("body:x", 3600),)))).is_duplicate
    later = await inbox.events.append(new_event(dedupe_keys=(Key("body:x", within=-1),)))
    assert later.number > first.number
    again = await inbox.events.append(new_event(dedupe_keys=(Key("body:x", within=3600),)))
    assert again.number == later.number


async def test_duplicates_within_one_batch_are_detected(inbox: Inbox) -> None:
    appended = await inbox.events.append_all([new_event(key=key) for key in ("a", "b", "a", "c", "b")])
    assert [one.is_duplicate for one in appended] == [False, False, True, False, True]
    assert [appended[2].number, appended[4].number] == [appended[0].number, appended[1].number]
    assert [event.dedupe_key for event in await read_all(inbox, "channel:orders")] == ["a", "b", "c"]


async def test_positions_are_committed_with_their_events(two: tuple[Inbox, Inbox]) -> None:
    assert await two[0].events.position_of("kafka:x", "a/orders") is None
    reached = [
        SourcePosition("kafka:x", "b/orders", [1]),
        SourcePosition("kafka:x", "a/orders", {"0": 17, "1": 4}),
    ]
    await two[0].events.append_all([new_event("kafka:x")], positions=reached)
    assert await two[1].events.position_of("kafka:x", "a/orders") == {"0": 17, "1": 4}
    assert await two[1].events.position_of("kafka:x", "b/orders") == [1]
    assert await two[1].events.position_of("kafka:y", "a/orders") is None
    moved = [SourcePosition("kafka:x", "a/orders", {"0": 18}), SourcePosition("kafka:y", "a/orders", "ü'\"")]
    assert await two[0].events.append_all([], positions=moved) == []
    assert await two[1].events.position_of("kafka:x", "a/orders") == {"0": 18}
    assert await two[1].events.position_of("kafka:y", "a/orders") == "ü'\""
    assert await two[1].events.position_of("kafka:x", "b/orders") == [1]


async def test_last_position_of_a_consumer_counts(inbox: Inbox) -> None:
    await inbox.events.append_all(
        [], positions=[SourcePosition("kafka:x", "a/orders", at) for at in (1, 3, 2)]
    )
    assert await inbox.events.position_of("kafka:x", "a/orders") == 2


async def test_concurrent_updates_of_the_same_positions_do_not_deadlock(
    two: tuple[Inbox, Inbox],
) -> None:
    reached = [SourcePosition("kafka:x", f"{number}/orders", number) for number in range(200)]
    async with asyncio.timeout(20):
        await asyncio.gather(
            *(two[i % 2].events.append_all([], positions=reached[:: 1 - i % 2 * 2]) for i in range(40))
        )
    assert await two[0].events.position_of("kafka:x", "199/orders") == 199


async def test_failed_append_does_not_change_positions(inbox: Inbox) -> None:
    await inbox.events.append_all([], positions=[SourcePosition("kafka:x", "a/orders", 1)])
    with pytest.raises(TypeError):
        await inbox.events.append_all(
            [new_event(payload={1, 2})], positions=[SourcePosition("kafka:x", "a/orders", 2)]
        )
    assert await inbox.events.position_of("kafka:x", "a/orders") == 1


async def test_events_are_read_in_pages_over_several_sources(inbox: Inbox) -> None:
    sources = ["channel:a", "channel:b", "channel:c"]
    await inbox.events.append_all([new_event(sources[i % 3], payload=i) for i in range(100)])
    seen: list[object] = []
    after, newest = 0, await inbox.events.newest()
    while page := await inbox.events.read(sources[:2], after=after, upto=newest, limit=7):
        assert len(page) <= 7
        seen += [event.payload for event in page]
        after = page[-1].number
    assert seen == [i for i in range(100) if i % 3 != 2]
    assert await inbox.events.read([], after=0, upto=newest, limit=7) == []


async def test_numbers_increase_in_commit_order(
    two: tuple[Inbox, Inbox],
) -> None:
    """A reader that continues after the highest number it has read must not miss an event that commits late."""
    seen: list[int] = []
    done = asyncio.Event()

    async def watch() -> None:
        after = 0
        while True:
            finished = done.is_set()
            newest = await two[0].events.newest()
            page = await two[0].events.read(["channel:orders"], after=after, upto=newest, limit=10_000)
            seen.extend(event.number for event in page)
            after = max(after, newest)
            if finished:
                return

    watching = asyncio.create_task(watch())
    appended = await asyncio.gather(*(two[i % 2].events.append(new_event()) for i in range(600)))
    bulk = await asyncio.gather(*(two[i % 2].events.append_all([new_event()] * 3) for i in range(40)))
    done.set()
    await watching
    numbers = {one.number for one in appended} | {one.number for batch in bulk for one in batch}
    assert sorted(numbers) == seen


async def test_concurrent_appends_of_the_same_event_store_it_once(two: tuple[Inbox, Inbox]) -> None:
    appended = await asyncio.gather(
        *(two[i % 2].events.append(new_event(key=str(i % 5))) for i in range(200)),
        *(two[i % 2].events.append_all([new_event(key=str(k)) for k in range(5)]) for i in range(20)),
    )
    new = [one for each in appended for one in (each if isinstance(each, list) else [each])]
    assert sum(not one.is_duplicate for one in new) == 5
    assert len(await read_all(two[0], "channel:orders")) == 5


def test_acknowledged_events_survive_killed_processes(shared_url: str, tmp_path: Path) -> None:
    files = [tmp_path / f"acknowledged-{number}" for number in range(4)]
    processes = [start(appender, shared_url, number, 400, file) for number, file in enumerate(files)]
    wait_until(lambda: all(len(_numbers(file)) > 20 for file in files), "some events", every=0.005)
    for process in processes[:2]:
        process.kill()
    for process in processes:
        process.join(timeout=60)
    kept = asyncio.run(_kept(shared_url))
    acknowledged = {key: number for file in files for key, number in _numbers(file).items()}
    assert Counter(kept).most_common(1)[0][1] == 1, "an event was appended twice"
    for process, file in zip(processes, files, strict=True):
        assert process.exitcode in (0, -9)
        # 400 events of its own, and 400 that all processes append.
        assert process.exitcode or len(_numbers(file)) == 800
    assert set(acknowledged) <= set(kept)


def _numbers(file: Path) -> dict[str, int]:
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return dict(json.loads(line) for line in lines if line.endswith("\n"))


async def _kept(url: str) -> list[str]:
    inbox = await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)
    kept = [event.dedupe_key for event in await read_all(inbox, "channel:many")]
    await inbox.close()
    return kept
