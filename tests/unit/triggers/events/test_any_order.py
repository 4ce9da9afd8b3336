"""Many waits, many events and repeated kills: each wait ends like a simple loop over the events."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from unit.triggers.events.support import NOTHING, payloads, value_of, waiting_for
from unit.triggers.support import Run, Runs, new_attempt

from deferrable_ops.inbox import Attempt
from deferrable_ops.inbox.events.events import NewEvent
from deferrable_ops.triggers.events.trigger import EventsTrigger

WAITS, EVENTS, KILLS = 60, 2_000, 6
CHANNELS = ("a", "b", "c")
CONDITIONS = {
    "a & b & c": lambda come: len(come) == 3,
    "a & (b | c)": lambda come: "a" in come and len(come) > 1,
    "at_least(2, a, b, c)": lambda come: len(come) >= 2,
    "a | b": lambda come: bool(come & {"a", "b"}),
}


@dataclass(frozen=True)
class Planned:
    """A wait with its expected result."""

    attempt: Attempt
    trigger: EventsTrigger
    condition: str
    keep: str
    since: float


@dataclass(frozen=True)
class Posted:
    """An event in commit order."""

    channel: str
    wait: int
    time: float
    payload: dict[str, Any]


@pytest.mark.usefixtures("telling_at_once")
@pytest.mark.parametrize("seed", range(3))
async def test_every_wait_ends_like_a_simple_loop_over_the_events(runs: Runs, seed: int) -> None:
    chance = random.Random(seed)
    now = time.time()
    planned = [plan(number, chance, now) for number in range(WAITS)]
    current = [runs.start(one.trigger, one.attempt) for one in planned]
    posted: list[Posted] = []
    for _ in range(KILLS):
        posted += await post_some(runs, chance, now, EVENTS // KILLS)
        for run in current:
            await kill(run)
        current = [runs.start(one.trigger, one.attempt) for one in planned]
    posted += await post_one_for_each(runs, now)
    for number, (one, run) in enumerate(zip(planned, current, strict=True)):
        assert payloads(await value_of(run)) == expected(one, number, posted)


def plan(number: int, chance: random.Random, now: float) -> Planned:
    condition, keep = chance.choice(list(CONDITIONS)), chance.choice(["first", "last", "all"])
    since = now - chance.choice([0, 600])
    text = datetime.fromtimestamp(since, UTC).isoformat()
    trigger = waiting_for(*CHANNELS, match={"id": number}, condition=condition, keep=keep, since=text)
    return Planned(new_attempt(), trigger, condition, keep, since)


async def post_some(runs: Runs, chance: random.Random, now: float, count: int) -> list[Posted]:
    some = [
        Posted(
            chance.choice(CHANNELS),
            wait := chance.randrange(WAITS),
            now + chance.choice([-500, 1, 2]),
            {"id": wait, "of": uuid4().hex},
        )
        for _ in range(count)
    ]
    for start in range(0, count, 20):
        await append(runs, some[start : start + 20])
        # Lets triggers run in between.
        await asyncio.sleep(0)
    return some


async def post_one_for_each(runs: Runs, now: float) -> list[Posted]:
    last = [Posted(channel, wait, now + 3, {"id": wait}) for wait in range(WAITS) for channel in CHANNELS]
    await append(runs, last)
    return last


async def append(runs: Runs, events: list[Posted]) -> None:
    await runs.inbox.events.append_all(
        [NewEvent(f"channel:{one.channel}", uuid4().hex, one.payload, NOTHING, one.time) for one in events]
    )


async def kill(run: Run) -> None:
    if not run.task.done():
        await run.kill_process()


def expected(one: Planned, number: int, posted: list[Posted]) -> dict[str, Any]:
    came: dict[str, list[Any]] = {channel: [] for channel in CHANNELS}
    for event in posted:
        if event.wait == number and event.time >= one.since:
            came[event.channel].append(event.payload)
            if CONDITIONS[one.condition]({channel for channel in CHANNELS if came[channel]}):
                break
    if one.keep == "all":
        return came
    at = 0 if one.keep == "first" else -1
    return {channel: found[at] if found else None for channel, found in came.items()}
