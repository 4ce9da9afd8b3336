"""Helpers for the tests of the events triggers."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import uuid4

from unit.triggers.support import Run

from deferrable_ops.events import ChannelEvent
from deferrable_ops.events.specifications import Match, Specification, specification_to_json
from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.events.events import NewEvent
from deferrable_ops.outcome import Success
from deferrable_ops.triggers.events.trigger import EventsTrigger

NOTHING: dict[str, Any] = {"headers": {}, "attributes": {}, "metadata": {}}
LONG_AGO = "2020-01-01T00:00:00+00:00"


def waiting_for(*names: str, match: Match = None, **arguments: Any) -> EventsTrigger:
    """Return a trigger that waits for one event of each of the named channels."""
    return waiting_for_events({name: ChannelEvent(name, match=match) for name in names}, **arguments)


def waiting_for_events(events: dict[str, Specification], **arguments: Any) -> EventsTrigger:
    serialized = {name: specification_to_json(event) for name, event in events.items()}
    return EventsTrigger(events=serialized, **arguments)


async def post(inbox: Inbox, channel: str, payload: Any = None, at: float | None = None) -> int:
    """Post an event to a channel, and return its number."""
    event = NewEvent(ChannelEvent(channel).source, str(uuid4()), payload, NOTHING, at)
    return (await inbox.events.append(event)).number


async def begun(run: Run) -> None:
    """Wait until the run follows its events."""
    async with asyncio.timeout(20):
        while run.attempt.wait_id not in run.inbox.watcher.watched or not run.inbox.feed._followers:
            assert not run.task.done(), await run.outcome()
            await asyncio.sleep(0.01)


async def progress_kept(run: Run, come: dict[str, int]) -> None:
    """Wait until the stored progress has these counts."""
    deadline = time.monotonic() + 20
    while ((await run.wait()).progress or {}).get("come") != come:
        assert time.monotonic() < deadline, (await run.wait()).progress
        await asyncio.sleep(0.01)


def payloads(value: dict[str, Any]) -> dict[str, Any]:
    """Return only the payloads of a wait's value."""
    return {
        name: [one["payload"] for one in came] if isinstance(came, list) else came and came["payload"]
        for name, came in value.items()
    }


async def value_of(run: Run) -> Any:
    """Return the value with which a run succeeds."""
    outcome = await run.outcome()
    assert isinstance(outcome, Success), outcome
    return outcome.value
