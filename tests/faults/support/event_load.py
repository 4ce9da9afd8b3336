"""Events for the DAG `events_load`, and what its waits must come to, told by plain loops over what was sent."""

from __future__ import annotations

import random
from typing import Any

SOURCES = ("channel", "kafka", "sqs")
EACH = {"channel": 181, "kafka": 181, "sqs": 40}
"""How many events each source has for each run. moto looks through a whole FIFO queue for each message."""

Event = dict[str, Any]


def events_for(run: str, source: str, seed: int) -> list[Event]:
    """Return the events that one source has for one run, in the order in which they are sent.

    The first `end` may be anywhere in the last two thirds; there is something of every kind before it.
    """
    chance, count = random.Random(f"{seed}/{source}"), EACH[source]
    events = [
        {
            "run": run,
            "source": source,
            "n": number,
            "kind": "part" if chance.random() < 0.15 else "other",
            "size": chance.randrange(100),
        }
        for number in range(count)
    ]
    end = chance.randrange(count // 3, count - 6)
    events[3] |= {"kind": "part"}
    events[5] |= {"size": 95}
    events[35] |= {"size": 96}
    for place in (end, end + 5):
        events[place] |= {"kind": "end"}
    return events


def decoys_for(run: str, source: str) -> list[Event]:
    """Return events for a run that come before it begins: none of them counts."""
    return [
        {"run": run, "source": source, "n": 1000 + number, "kind": kind, "size": 99}
        for number, kind in enumerate(["part", "end"])
    ]


def expected(sent: dict[str, list[Event]]) -> dict[str, Any]:
    """Return what each task of one run must come to, but those that have a choice.

    :param sent: by source, what was sent for this run.
    """
    outcomes: dict[str, Any] = {"across": {source: first_end(events) for source, events in sent.items()}}
    for source, events in sent.items():
        parts, big, first_big = [], None, None
        for event in events:
            if event["kind"] == "part":
                parts.append(event)
            if event["size"] > 90:
                big = event
            if event["kind"] == "end":
                break
        for event in events:
            if event["size"] > 90 and event["n"] > 30:
                first_big = event
                break
        outcomes[f"all_{source}"] = {"part": parts, "end": [first_end(events)]}
        outcomes[f"last_{source}"] = {"big": big, "end": first_end(events)}
        outcomes[f"first_{source}"] = first_big
    return outcomes


def wrong_outcomes(came: dict[str, Any], sent: dict[str, list[Event]]) -> list[str]:
    """Return in words what came to something else than it must.

    :param came: the payloads by task.
    :param sent: by source, what was sent for this run.
    """
    wrong = [
        f"{task_id}: {in_short(came[task_id])} instead of {in_short(outcome)}"
        for task_id, outcome in expected(sent).items()
        if came[task_id] != outcome
    ]
    # Here it depends on which source was faster: what came must be right, and enough.
    ends = {source: first_end(events) for source, events in sent.items()}
    for task_id in ("any_two", "one_or_other"):
        found = {source: payload for source, payload in came[task_id].items() if payload is not None}
        is_enough = len(found) == 2 if task_id == "any_two" else len(found) >= 2 and "channel" in found
        if not is_enough or any(payload != ends[source] for source, payload in found.items()):
            wrong.append(f"{task_id}: {in_short(found)} of {in_short(ends)}")
    return wrong


def in_short(value: Any) -> Any:
    """Return an outcome with the numbers of the events in their places."""
    if isinstance(value, list):
        return [in_short(one) for one in value]
    if isinstance(value, dict):
        return value["n"] if "n" in value else {name: in_short(one) for name, one in sorted(value.items())}
    return value


def first_end(events: list[Event]) -> Event:
    """Return the event that ends a wait."""
    return next(event for event in events if event["kind"] == "end")


def payloads(value: Any) -> Any:
    """Return what a task came to, with the payload of each event in its place."""
    if isinstance(value, list):
        return [payloads(one) for one in value]
    if isinstance(value, dict):
        if "payload" in value:
            return value["payload"]
        return {name: payloads(one) for name, one in value.items()}
    return value
